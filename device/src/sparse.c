/* Convolutions with sparse weights. A row holds the weights of one output channel; it is decoded once an image, into
 * pairs of weights. A tile of output positions keeps its sums in registers while it walks the pairs once; a pair takes
 * two inputs for each position, and a core with DSP instructions multiplies and adds both at once.
 *
 * The input's zero point is folded into the bias, and the input's border holds the zero point. What a window reaches
 * beyond the border counts as the zero point, too. Above and below, the rows of the kernel that lie there are left out,
 * and what they would add goes into the bias. To the left and right, the windows read whatever lies beside the input,
 * and then take back what that has added. */
#include "dsp.h"
#include "internal.h"
#include "windows.h"

/* Two weights: how far the input of each lies from the window's corner, and their values, int16, the first one lower.
 * The last weight of an odd number has a partner of value 0. */
typedef struct {
    uint32_t offset[2];
    uint32_t values;
} pair;

/* One of the kernel's positions. */
typedef struct {
    uint32_t behind; /* from a window's corner to the tap's input behind the last channel */
    uint32_t start;  /* where the row's weights of the tap begin: 32 bits of the pair's address, and 1 for its second */
} tap;

/* Weights of one output channel, or of some rows of its kernel. */
typedef struct {
    pair *pairs, *end;
    const tap *taps; /* and one behind the last */
    uint32_t rows, columns;
    row_scale scale;
    usual_scale usual; /* where the scale is usual */
    int is_usual;
} channel;

typedef struct geometry geometry;

/* Output positions of neighbouring rows and columns. */
typedef struct {
    uint32_t y, y_end, x, x_end;
} area;

/* Compute an area of whole tiles, the window of whose first position has this corner. */
typedef void run_tiles(const geometry *g, const channel *k, const int8_t *corner, const area *a);

struct geometry {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int32_t input_zero_point;
    range outputs;
    axis down, across;
    int clipped; /* some window reaches beyond the border at the left or right */
    run_tiles *wide;
    uint32_t rows, columns; /* of a wide tile */
};

/* Weight number `i` of those that begin with a pair's first. */
static inline uint32_t offset_of(const pair *pairs, uint32_t i) { return pairs[i >> 1].offset[i & 1u]; }
static inline int32_t value_of(const pair *pairs, uint32_t i)
{
    return (int16_t)(pairs[i >> 1].values >> (i & 1u) * 16u);
}

/* Which number the tap's first weight is in a list that begins at `pairs`. */
static inline uint32_t first_of(const pair *pairs, const tap *t)
{
    const uint32_t bytes = t->start - (uint32_t)(uintptr_t)pairs;
    return bytes / (uint32_t)sizeof *pairs * 2u + (bytes & 1u);
}

/* What the columns from..end - 1 of the kernel have added to a window's sum, more than the zero point would. */
static int32_t added_by(const channel *k, const int8_t *corner, uint32_t from, uint32_t end, int32_t zero_point)
{
    int32_t sum = 0;
    const tap *t = k->taps;
    for (uint32_t ky = k->rows; from != end && ky--; t += k->columns)
        for (uint32_t i = first_of(k->pairs, t + from); i != first_of(k->pairs, t + end); i++)
            sum += value_of(k->pairs, i) * (corner[offset_of(k->pairs, i)] - zero_point);
    return sum;
}

/* Scale the sums of a tile, whose first position is in column x, in any case. */
NOT_INLINED void finish_tile(const geometry *g, const channel *k, const int8_t *corner, uint32_t x, uint32_t rows,
                             uint32_t columns, int32_t *sums, int8_t *to)
{
    for (uint32_t i = 0; i < columns; i++) {
        if (are_inside(&g->across, x + i, 1))
            continue;
        const span s = taps_inside(&g->across, x + i);
        const int8_t *from = corner + i * g->stride_x;
        for (uint32_t row = 0; row < rows; row++, from += g->stride_y) {
            sums[row * columns + i] -= added_by(k, from, 0, s.from, g->input_zero_point);
            sums[row * columns + i] -= added_by(k, from, s.end, k->columns, g->input_zero_point);
        }
    }
    for (uint32_t row = 0; row < rows; row++, sums += columns, to += g->pitch)
        put(&k->scale, &g->outputs, sums, columns, to);
}

/* Add the products of a pair to a tile's sums, s[0] to s[3]; x is the corner of the window of its first position. */
#if ENTROPI_DSP

static inline uint32_t load_2(const int8_t *p)
{
    uint16_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

static inline uint32_t load_4(const int8_t *p)
{
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

SPECIALISE void add_products(uint32_t a, uint32_t b, uint32_t values, int32_t *s)
{
    const uint32_t both = join_lower(a, b);
    s[0] = multiply_halves(even_bytes(both), values, s[0]);
    s[1] = multiply_halves(odd_bytes(both), values, s[1]);
}

#endif

SPECIALISE void add_pair(const pair *p, const int8_t *x, uint32_t down, uint32_t rows, uint32_t columns,
                         uint32_t stride, int32_t *s)
{
    const int8_t *a = x + p->offset[0], *b = x + p->offset[1];
#if ENTROPI_DSP
    if (stride == 1 && rows == 1 && columns == 4) {
        const uint32_t first = load_4(a), second = load_4(b), upper = join_upper(first, second);
        add_products(first, second, p->values, s);
        s[2] = multiply_halves(even_bytes(upper), p->values, s[2]);
        s[3] = multiply_halves(odd_bytes(upper), p->values, s[3]);
        return;
    }
    if (stride == 1 && rows == 2 && columns == 2) {
        add_products(load_2(a), load_2(b), p->values, s);
        add_products(load_2(a + down), load_2(b + down), p->values, s + 2);
        return;
    }
#endif
    const int32_t first = (int16_t)p->values, second = (int32_t)p->values >> 16;
    s[0] += first * a[0] + second * b[0];
    if (columns > 1)
        s[1] += first * a[stride] + second * b[stride];
    if (columns > 2) {
        s[2] += first * a[2 * stride] + second * b[2 * stride];
        s[3] += first * a[3 * stride] + second * b[3 * stride];
    } else if (rows > 1) {
        s[2] += first * a[down] + second * b[down];
        s[3] += first * a[down + stride] + second * b[down + stride];
    }
}

SPECIALISE void tiles(const geometry *g, const channel *k, const int8_t *corner, const area *a, uint32_t rows,
                      uint32_t columns, uint32_t stride)
{
    const uint32_t down = g->stride_y, across = stride ? stride : g->stride_x;
    corner += a->x * across;
    for (uint32_t y = a->y; y < a->y_end; y += rows, corner += rows * down) {
        const int8_t *x = corner;
        int8_t *to = g->output + y * g->pitch + a->x, *const last = to + (a->x_end - a->x);
        for (; to != last; to += columns, x += columns * across) {
            const int32_t bias = k->scale.bias;
            int32_t s[4] = {bias, bias, bias, bias};
            for (const pair *p = k->pairs; p != k->end; p++)
                add_pair(p, x, down, rows, columns, across, s);
            const uint32_t column = (uint32_t)(to - last) + a->x_end;
            if (k->is_usual && (!g->clipped || are_inside(&g->across, column, columns))) {
                const usual_scale usual = k->usual;
                to[0] = usual_output(s[0], &usual);
                if (columns > 1)
                    to[1] = usual_output(s[1], &usual);
                int8_t *const rest = rows > 1 ? to + g->pitch : to + 2;
                if (rows * columns > 2) {
                    rest[0] = usual_output(s[2], &usual);
                    rest[1] = usual_output(s[3], &usual);
                }
            } else {
                int32_t sums[4] = {s[0], s[1], s[2], s[3]};
                finish_tile(g, k, x, column, rows, columns, sums, to);
            }
        }
    }
}

#define TILES(name, rows, columns, stride)                                                                             \
    static void name(const geometry *g, const channel *k, const int8_t *corner, const area *a)                         \
    {                                                                                                                  \
        tiles(g, k, corner, a, rows, columns, stride);                                                                 \
    }
TILES(tiles_1x4_stride_1, 1, 4, 1)
TILES(tiles_1x4_stride_2, 1, 4, 2)
TILES(tiles_2x2_stride_1, 2, 2, 1)
TILES(tiles_2x2_stride_2, 2, 2, 2)
TILES(positions, 1, 1, 0)

/* The largest tile that the output's size allows. */
static void choose_tile(geometry *g)
{
    const uint32_t stride = g->stride_x;
    g->wide = positions;
    g->rows = g->columns = 1;
    if (stride <= 2 && g->width >= 4) {
        g->wide = stride == 1 ? tiles_1x4_stride_1 : tiles_1x4_stride_2;
        g->columns = 4;
    } else if (stride <= 2 && g->width >= 2 && g->height >= 2) {
        g->wide = stride == 1 ? tiles_2x2_stride_1 : tiles_2x2_stride_2;
        g->rows = g->columns = 2;
    }
}

/* Output rows y..end - 1, all of whose windows have the same rows of the kernel. */
static void run_rows(const geometry *g, const channel *k, const int8_t *corner, uint32_t y, uint32_t end)
{
    const uint32_t y_whole = end - (end - y) % g->rows, x_whole = g->width - g->width % g->columns;
    if (y_whole > y) {
        g->wide(g, k, corner, &(area){y, y_whole, 0, x_whole});
        if (x_whole < g->width)
            positions(g, k, corner, &(area){y, y_whole, x_whole, g->width});
    }
    if (y_whole < end)
        positions(g, k, corner + (y_whole - y) * g->stride_y, &(area){y_whole, end, 0, g->width});
}

/* The sum of the weights from..end - 1. */
static int32_t weights_between(const channel *k, uint32_t from, uint32_t end)
{
    int32_t sum = 0;
    for (; from != end; from++)
        sum += value_of(k->pairs, from);
    return sum;
}

/* Output row y, without the rows of the kernel that lie above or below the input. */
static void run_cut_row(const geometry *g, const channel *k, uint32_t y)
{
    const span s = taps_inside(&g->down, y);
    channel cut = *k;
    cut.taps = k->taps + s.from * k->columns;
    cut.rows = s.end - s.from;
    const tap *const last = k->taps + k->rows * k->columns, *const behind = cut.taps + cut.rows * k->columns;
    const uint32_t first = first_of(k->pairs, cut.taps), end = first_of(k->pairs, behind);
    cut.scale.bias += g->input_zero_point *
                      (weights_between(k, 0, first) + weights_between(k, end, first_of(k->pairs, last)));
    cut.pairs = k->pairs + first / 2u;
    cut.end = first == end ? cut.pairs : k->pairs + (end + 1u) / 2u;
    if (first == end) {
        run_rows(g, &cut, g->input + y * g->stride_y, y, y + 1);
        return;
    }
    /* A weight that is left out alone has its partner's input and a value of 0 for a while. */
    pair *const first_pair = cut.pairs, *const last_pair = cut.end - 1;
    const pair first_whole = *first_pair, last_whole = *last_pair;
    if (first & 1u) {
        first_pair->offset[0] = first_pair->offset[1];
        first_pair->values &= 0xFFFF0000u;
    }
    if (end & 1u) {
        last_pair->offset[1] = last_pair->offset[0];
        last_pair->values &= 0xFFFFu;
    }
    run_rows(g, &cut, g->input + y * g->stride_y, y, y + 1);
    *first_pair = first_whole;
    *last_pair = last_whole;
}

/* Every output position of a channel. */
static void run_channel(const geometry *g, const channel *k)
{
    const uint32_t from = g->down.whole_from, end = g->down.whole_end;
    for (uint32_t y = 0; y < from; y++)
        run_cut_row(g, k, y);
    if (from < end)
        run_rows(g, k, g->input + from * g->stride_y, from, end);
    for (uint32_t y = end; y < g->height; y++)
        run_cut_row(g, k, y);
}

/* A row that is being decoded. */
typedef struct {
    tap *t, *last; /* the next tap, and behind the last one */
    uint32_t behind, channels;
} tap_reader;

/* Enter the tap of the entry that has been read ahead: from the tap's last channel backwards, its channel is then below
 * zero. 0 where the row ends before it. */
SPECIALISE int enter_tap(tap_reader *taps, entry_reader *r, uint32_t start)
{
    while ((int32_t)r->next >= 0) {
        taps->t->start = start;
        if (taps->t == taps->last)
            return 0;
        taps->behind = taps->t->behind;
        taps->t++;
        r->next -= taps->channels;
    }
    return 1;
}

static inline uint32_t join_values(int32_t first, int32_t second)
{
#if ENTROPI_DSP
    return join_lower((uint32_t)first, (uint32_t)second);
#else
    return (uint16_t)first | (uint32_t)second << 16;
#endif
}

/* Decode the reader's next row, which holds entries, into pairs: kernel row after kernel row, kernel column, input
 * channel. Returns their end. */
SPECIALISE pair *decode_row(entry_reader *reader, int is_rice, tap_reader taps, uint32_t plane, pair *to)
{
    entry_reader r = *reader;
    while (enter_tap(&taps, &r, (uint32_t)(uintptr_t)to)) {
        const int32_t first = r.value;
        const uint32_t offset = taps.behind + r.next * plane;
        read_entry(&r, is_rice);
        if (!enter_tap(&taps, &r, (uint32_t)(uintptr_t)to + 1u)) {
            *to++ = (pair){{offset, offset}, join_values(first, 0)};
            break;
        }
        *to++ = (pair){{offset, taps.behind + r.next * plane}, join_values(first, r.value)};
        read_entry(&r, is_rice);
    }
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return to;
}

static pair *decode_pairs(entry_reader *r, tap_reader taps, uint32_t plane, pair *to)
{
    return decode_row(r, 0, taps, plane, to);
}

static pair *decode_codes(entry_reader *r, tap_reader taps, uint32_t plane, pair *to)
{
    return decode_row(r, 1, taps, plane, to);
}

static void constant_channel(const geometry *g, int8_t value)
{
    for (uint32_t y = 0; y < g->height; y++)
        for (uint32_t x = 0; x < g->width; x++)
            g->output[y * g->pitch + x] = value;
}

void run_sparse(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations,
                uint32_t *scratch)
{
    geometry g = {
        .input = activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .output = activations + interior(out),
        .stride_y = l->stride_h * in->pitch,
        .stride_x = l->stride_w,
        .pitch = out->pitch,
        .height = out->height,
        .width = out->width,
        .input_zero_point = in->zero_point,
        .outputs = range_of(l, out),
    };
    g.down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom, g.height);
    g.across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right, g.width);
    g.clipped = !are_inside(&g.across, 0, g.width);
    choose_tile(&g);
    const uint32_t rows = out->channels, rows_a_group = rows / l->groups, count = (uint32_t)l->kernel_h * l->kernel_w;
    const uint32_t channels = (uint32_t)in->channels / l->groups, length = channels * count;
    const uint32_t group_bytes = channels * in->plane;
    tap *const taps = (tap *)(void *)scratch;
    channel k = {
        .pairs = (pair *)(void *)(scratch + (count + 1u) * TAP_WORDS),
        .taps = taps,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
    };
    for (uint32_t i = 0; i < count; i++)
        taps[i].behind =
            i / k.columns * l->dilation_h * in->pitch + i % k.columns * l->dilation_w + group_bytes;
    const int is_rice = l->encoding == WEIGHTS_RICE;
    const tap_reader reader = {taps, taps + count, 0, channels};
    scale_reader scales = open_scales(image + l->parameters_at);
    entry_reader entries = open_entries(image + l->weights_at, is_rice);
    read_entry(&entries, is_rice);
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        if (c && c % rows_a_group == 0)
            g.input += group_bytes;
        if (entries.next >= length) {
            entries.next -= length;
            constant_channel(&g, (int8_t)*scales.at++);
            continue;
        }
        k.end = (is_rice ? decode_codes : decode_pairs)(&entries, reader, in->plane, k.pairs);
        k.scale = read_scale(&scales);
        k.is_usual = is_usual(&k.scale, &g.outputs);
        if (k.is_usual)
            k.usual = usual(&k.scale, &g.outputs);
        run_channel(&g, &k);
    }
}
