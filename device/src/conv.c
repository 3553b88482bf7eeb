/* CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED. The output channels of a group read the input channels of that group
 * alone. A row holds the weights of one output channel; a sparse one is decoded once an image, into packed weights. The
 * input's zero point is folded into the bias, and the input's border holds the zero point, so that a weight costs one
 * load and one multiply-accumulate at every output position. Output positions are computed in tiles whose sums stay in
 * registers while the row is walked once.
 *
 * What a window reaches beyond the border counts as the zero point, too. Above and below, the rows of the kernel that
 * lie there are left out, and what they would add goes into the bias. To the left and right, the windows read whatever
 * lies beside the input, and then take back what that has added. */
#include "internal.h"

/* The windows along one axis: which of their taps lie inside the input and its border. Distances count from the first
 * value of the first window. */
typedef struct {
    uint32_t stride, dilation, taps;
    uint32_t begin, end;            /* of the inside */
    uint32_t whole_from, whole_end; /* windows from..end - 1 lie inside */
} axis;

typedef struct {
    uint32_t from, end;
} span;

/* One of the kernel's positions, for sparse rows. */
typedef struct {
    uint32_t behind; /* packed: from a window's corner to the tap's input behind the last channel */
    uint32_t start;  /* where the row's weights of the tap lie: an address, of which 32 bits are enough */
} tap;

/* Weights of one output channel, or of some rows of its kernel: a list of packed weights, or, where there is none, all
 * of them. How far inputs of neighbouring channels, kernel rows and kernel columns lie apart is `plane`, `down` and
 * `across`. */
typedef struct {
    const uint32_t *packed;
    uint32_t count;
    const tap *taps; /* of the list, and one behind the last */
    const int8_t *dense;
    uint32_t channels, rows, columns;
    uint32_t plane, down, across;
    uint32_t step; /* from the dense weights of one channel to the next one's */
    row_scale scale;
} channel;

/* One packed weight is offset << 8 | value: how far its input lies from the window's corner, and the int8 value. */
static inline uint32_t pack(uint32_t offset, int8_t value) { return offset << 8 | (uint8_t)value; }
static inline uint32_t packed_offset(uint32_t w) { return w >> 8; }
static inline int32_t packed_value(uint32_t w) { return (int8_t)w; }

/* From the first weight of a list to the first one of a tap. */
static inline uint32_t weights_before(const channel *k, const tap *t)
{
    return (t->start - k->taps->start) / (uint32_t)sizeof *k->packed;
}

/* The windows of a layer along one axis. `before` and `after` are the border, `size` the map inside it. */
static axis along(uint32_t stride, uint32_t dilation, uint32_t taps, uint32_t pad, uint32_t before, uint32_t size,
                  uint32_t after, uint32_t outputs)
{
    const uint32_t extent = (taps - 1u) * dilation + 1u;
    axis a = {.stride = stride, .dilation = dilation, .taps = taps, .whole_end = outputs};
    a.begin = pad > before ? pad - before : 0;
    a.end = pad + size + after;
    while (a.whole_from < outputs && a.whole_from * stride < a.begin)
        a.whole_from++;
    while (a.whole_end > a.whole_from && (a.whole_end - 1u) * stride + extent > a.end)
        a.whole_end--;
    return a;
}

/* Which taps of a window lie inside. */
static span taps_inside(const axis *a, uint32_t window)
{
    const uint32_t at = window * a->stride;
    span s = {0, a->taps};
    while (s.from < a->taps && at + s.from * a->dilation < a->begin)
        s.from++;
    while (s.end > s.from && at + (s.end - 1u) * a->dilation >= a->end)
        s.end--;
    return s;
}

/* Windows from `window` to `window + count - 1` lie inside. */
static inline int are_inside(const axis *a, uint32_t window, uint32_t count)
{
    return window >= a->whole_from && window + count <= a->whole_end;
}

/* Call each(weight, inputs) for every weight of the channel, inputs being the window's corner x moved to its input.
 * A macro, since C has no other way to keep the sums in registers. */
#define FOR_EACH_WEIGHT(k, is_dense, x, each)                                                                          \
    if (is_dense) {                                                                                                    \
        const int8_t *kernel = (k)->dense, *plane = (x);                                                               \
        const uint32_t columns = (k)->columns, across = (k)->across;                                                   \
        for (uint32_t c = (k)->channels; c; c--, plane += (k)->plane, kernel += (k)->step) {                           \
            const int8_t *weight = kernel, *line = plane;                                                              \
            for (uint32_t ky = (k)->rows; ky; ky--, line += (k)->down) {                                               \
                const int8_t *tap = line, *end = line + columns * across;                                              \
                for (; tap != end; tap += across, weight++)                                                            \
                    each((int32_t)*weight, tap)                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    } else {                                                                                                           \
        for (const uint32_t *w = (k)->packed, *end = w + (k)->count; w != end; w++)                                    \
            each(packed_value(*w), (x) + packed_offset(*w))                                                            \
    }

/* Sums of a tile of neighbouring output positions, whose first window's corner is x: two groups of positions `stride`
 * input bytes from each other, the groups `apart`. Not inlined, so that the sums stay in registers. */
typedef void tile_sums(const channel *k, const int8_t *x, uint32_t apart, int32_t *sums);

SPECIALISE void sum8(const channel *k, int is_dense, const int8_t *x, uint32_t stride, uint32_t apart, int32_t *sums)
{
    int32_t s0 = k->scale.bias, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
#define EACH(value, inputs)                                                                                            \
    {                                                                                                                  \
        const int32_t v = (value);                                                                                     \
        const int8_t *p = (inputs), *q = p + apart;                                                                    \
        s0 += v * p[1];                                                                                                \
        s1 += v * p[1 + stride];                                                                                       \
        s2 += v * p[1 + 2 * stride];                                                                                   \
        s3 += v * p[1 + 3 * stride];                                                                                   \
        s4 += v * q[1];                                                                                                \
        s5 += v * q[1 + stride];                                                                                       \
        s6 += v * q[1 + 2 * stride];                                                                                   \
        s7 += v * q[1 + 3 * stride];                                                                                   \
    }
    FOR_EACH_WEIGHT(k, is_dense, x - 1, EACH) /* so every load is some bytes behind one address a weight */
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3, sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;
}

SPECIALISE void sum4(const channel *k, int is_dense, const int8_t *x, uint32_t stride, uint32_t apart, int32_t *sums)
{
    int32_t s0 = k->scale.bias, s1 = s0, s2 = s0, s3 = s0;
#define EACH(value, inputs)                                                                                            \
    {                                                                                                                  \
        const int32_t v = (value);                                                                                     \
        const int8_t *p = (inputs), *q = p + apart;                                                                    \
        s0 += v * p[1];                                                                                                \
        s1 += v * p[1 + stride];                                                                                       \
        s2 += v * q[1];                                                                                                \
        s3 += v * q[1 + stride];                                                                                       \
    }
    FOR_EACH_WEIGHT(k, is_dense, x - 1, EACH) /* so every load is some bytes behind one address a weight */
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

SPECIALISE void sum1(const channel *k, int is_dense, const int8_t *x, int32_t *sums)
{
    int32_t sum = k->scale.bias;
#define EACH(value, inputs) sum += (value) * *(inputs);
    FOR_EACH_WEIGHT(k, is_dense, x, EACH)
#undef EACH
    *sums = sum;
}

#define TILE_SUMS(name, sum)                                                                                           \
    static void name(const channel *k, const int8_t *x, uint32_t apart, int32_t *sums)                                 \
    {                                                                                                                  \
        (void)apart;                                                                                                   \
        sum;                                                                                                           \
    }
TILE_SUMS(sparse_1x8_stride_1, sum8(k, 0, x, 1, 4, sums))
TILE_SUMS(sparse_1x8_stride_2, sum8(k, 0, x, 2, 8, sums))
TILE_SUMS(sparse_2x4_stride_1, sum8(k, 0, x, 1, apart, sums))
TILE_SUMS(sparse_2x4_stride_2, sum8(k, 0, x, 2, apart, sums))
TILE_SUMS(sparse_2x2_stride_1, sum4(k, 0, x, 1, apart, sums))
TILE_SUMS(sparse_2x2_stride_2, sum4(k, 0, x, 2, apart, sums))
TILE_SUMS(sparse_1x1, sum1(k, 0, x, sums))
TILE_SUMS(dense_1x8_stride_1, sum8(k, 1, x, 1, 4, sums))
TILE_SUMS(dense_1x8_stride_2, sum8(k, 1, x, 2, 8, sums))
TILE_SUMS(dense_2x4_stride_1, sum8(k, 1, x, 1, apart, sums))
TILE_SUMS(dense_2x4_stride_2, sum8(k, 1, x, 2, apart, sums))
TILE_SUMS(dense_2x2_stride_1, sum4(k, 1, x, 1, apart, sums))
TILE_SUMS(dense_2x2_stride_2, sum4(k, 1, x, 2, apart, sums))
TILE_SUMS(dense_1x1, sum1(k, 1, x, sums))

typedef struct {
    uint32_t rows, columns;
    tile_sums *sums;
} tile;

enum { TILE_1X8, TILE_2X4, TILE_2X2, TILE_1X1, TILES };

/* The tile of a size for a stride of 1 or 2; that of one position is for any stride. */
static tile tile_of(uint32_t size, int is_dense, uint32_t stride)
{
    static tile_sums *const sparse[TILES][2] = {
        {sparse_1x8_stride_1, sparse_1x8_stride_2},
        {sparse_2x4_stride_1, sparse_2x4_stride_2},
        {sparse_2x2_stride_1, sparse_2x2_stride_2},
        {sparse_1x1, sparse_1x1},
    };
    static tile_sums *const dense[TILES][2] = {
        {dense_1x8_stride_1, dense_1x8_stride_2},
        {dense_2x4_stride_1, dense_2x4_stride_2},
        {dense_2x2_stride_1, dense_2x2_stride_2},
        {dense_1x1, dense_1x1},
    };
    static const uint8_t rows[] = {1, 2, 2, 1}, columns[] = {8, 4, 2, 1};
    return (tile){rows[size], columns[size], (is_dense ? dense : sparse)[size][stride == 2]};
}

typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int32_t input_zero_point;
    range outputs;
    int clipped; /* some window reaches beyond the border */
    axis down, across;
    tile wide, single;
} geometry;

/* The sum of the weights of some rows of the kernel. */
static int32_t weights_between(const channel *k, uint32_t from, uint32_t end)
{
    int32_t sum = 0;
    if (!k->dense) {
        const uint32_t *w = k->packed + weights_before(k, k->taps + from * k->columns);
        for (const uint32_t *last = k->packed + weights_before(k, k->taps + end * k->columns); w != last; w++)
            sum += packed_value(*w);
        return sum;
    }
    const int8_t *weight = k->dense;
    for (uint32_t c = 0; c < k->channels; c++, weight += k->step)
        for (uint32_t i = from * k->columns; i < end * k->columns; i++)
            sum += weight[i];
    return sum;
}

/* The channel for windows of output row y, and in *corner those windows' corner: without the rows of the kernel that
 * lie above or below the input. `cut` has room for it. */
static const channel *at_row(const geometry *g, const channel *k, uint32_t y, channel *cut, const int8_t **corner)
{
    *corner = g->input + y * g->stride_y;
    if (are_inside(&g->down, y, 1))
        return k;
    const span s = taps_inside(&g->down, y);
    *cut = *k;
    cut->rows = s.end - s.from;
    cut->scale.bias += g->input_zero_point * (weights_between(k, 0, s.from) + weights_between(k, s.end, k->rows));
    if (k->dense) {
        cut->dense += s.from * k->columns;
        *corner += s.from * k->down;
    } else {
        cut->taps += s.from * k->columns;
        cut->packed += weights_before(k, cut->taps);
        cut->count = weights_before(cut, cut->taps + cut->rows * k->columns);
    }
    return cut;
}

/* What the columns from..end - 1 of the kernel have added to a window's sum, more than the zero point would. */
static int32_t added_by(const channel *k, const int8_t *corner, uint32_t from, uint32_t end, int32_t zero_point)
{
    int32_t sum = 0;
    if (from == end)
        return 0;
    if (!k->dense) {
        const tap *t = k->taps;
        for (uint32_t ky = k->rows; ky--; t += k->columns) {
            if (t[from].start == t[end].start)
                continue;
            const uint32_t *w = k->packed + weights_before(k, t + from);
            for (const uint32_t *last = k->packed + weights_before(k, t + end); w != last; w++)
                sum += packed_value(*w) * (corner[packed_offset(*w)] - zero_point);
        }
        return sum;
    }
    const int8_t *kernel = k->dense;
    for (uint32_t c = k->channels; c--; kernel += k->step, corner += k->plane) {
        const int8_t *weight = kernel, *line = corner;
        for (uint32_t ky = k->rows; ky--; weight += k->columns, line += k->down)
            for (uint32_t kx = from; kx < end; kx++)
                sum += weight[kx] * (line[kx * k->across] - zero_point);
    }
    return sum;
}

/* Take back from the sums of a tile, whose first position is in column x, what lies beside the input. */
NOT_INLINED void take_back(const geometry *g, const channel *k, const tile *t, const int8_t *corner, uint32_t x,
                           int32_t *sums)
{
    const uint32_t end = x + t->columns;
    for (; x < end; x++, corner += g->stride_x, sums++) {
        if (are_inside(&g->across, x, 1))
            continue;
        const span s = taps_inside(&g->across, x);
        const int8_t *from = corner;
        for (uint32_t row = 0; row < t->rows; row++, from += g->stride_y) {
            int32_t *sum = sums + row * t->columns;
            *sum -= added_by(k, from, 0, s.from, g->input_zero_point);
            *sum -= added_by(k, from, s.end, k->columns, g->input_zero_point);
        }
    }
}

/* Tiles side by side, of the rows of positions from y on, in columns x..end - 1. */
static void strip(const geometry *g, const channel *k, const tile *t, const int8_t *corner, uint32_t y, uint32_t x,
                  uint32_t end)
{
    const uint32_t columns = t->columns, across = columns * g->stride_x;
    const int8_t *from = corner + x * g->stride_x;
    for (int8_t *to = g->output + y * g->pitch + x; x < end; x += columns, from += across, to += columns) {
        int32_t sums[8];
        t->sums(k, from, g->stride_y, sums);
        if (g->clipped && !are_inside(&g->across, x, columns))
            take_back(g, k, t, from, x, sums);
        put(&k->scale, &g->outputs, sums, columns, to);
        if (t->rows == 2)
            put(&k->scale, &g->outputs, sums + columns, columns, to + g->pitch);
    }
}

/* Every output position of a channel, in tiles. The rest goes one by one, and so do two rows of positions of which one
 * lacks a row of the kernel. */
static void run_channel(const geometry *g, const channel *k)
{
    const uint32_t whole_x = g->width - g->width % g->wide.columns;
    for (uint32_t y = 0; y < g->height;) {
        const int whole = g->wide.rows == 1 || (y + 2 <= g->height && are_inside(&g->down, y, 2));
        const tile *t = whole ? &g->wide : &g->single;
        channel cut;
        const int8_t *corner;
        const channel *here = at_row(g, k, y, &cut, &corner);
        strip(g, here, t, corner, y, 0, whole_x);
        for (uint32_t row = 0; whole_x < g->width && row < t->rows; row++)
            strip(g, here, &g->single, corner + row * g->stride_y, y + row, whole_x, g->width);
        y += t->rows;
    }
}

/* The largest tile that the output's size allows. */
static tile largest_tile(const geometry *g, int is_dense)
{
    const uint32_t stride = g->stride_x;
    const int tall = g->height >= 2 && stride <= 2;
    const uint32_t size = g->width >= 8 && stride <= 2 ? TILE_1X8
                          : g->width >= 4 && tall      ? TILE_2X4
                          : g->width >= 2 && tall      ? TILE_2X2
                                                       : TILE_1X1;
    return tile_of(size, is_dense, stride);
}

/* Decode the reader's next row, of `length` positions, into packed weights: kernel row after kernel row, kernel column,
 * input channel. Returns how many they are. */
SPECIALISE uint32_t decode_row(entry_reader *reader, int is_rice, const channel *k, uint32_t length, tap *t,
                               uint32_t *row)
{
    if (reader->next >= length) {
        reader->next -= length;
        return 0;
    }
    const uint32_t channels = k->channels, plane = pack(k->plane, 0);
    entry_reader r = *reader;
    uint32_t *to = row;
    for (const tap *last = t + k->rows * k->columns; t != last; t++) {
        t->start = (uint32_t)(uintptr_t)to;
        r.next -= channels; /* now below zero, from the tap's last channel backwards, while it belongs to the tap */
        for (const uint32_t behind = t->behind; (int32_t)r.next < 0; read_entry(&r, is_rice))
            *to++ = (behind + r.next * plane) | r.value;
    }
    t->start = (uint32_t)(uintptr_t)to;
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return (uint32_t)(to - row);
}

static uint32_t decode_pairs(entry_reader *r, const channel *k, uint32_t length, tap *t, uint32_t *row)
{
    return decode_row(r, 0, k, length, t, row);
}

static uint32_t decode_codes(entry_reader *r, const channel *k, uint32_t length, tap *t, uint32_t *row)
{
    return decode_row(r, 1, k, length, t, row);
}

static void constant_channel(const geometry *g, int8_t value)
{
    for (uint32_t y = 0; y < g->height; y++)
        for (uint32_t x = 0; x < g->width; x++)
            g->output[y * g->pitch + x] = value;
}

static void run_conv(const work *w)
{
    const uint8_t *image = w->image;
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    int8_t *activations = w->activations;
    uint32_t *scratch = w->scratch;
    const int is_dense = l->encoding == WEIGHTS_DENSE, is_rice = l->encoding == WEIGHTS_RICE;
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
    g.wide = largest_tile(&g, is_dense);
    g.single = tile_of(TILE_1X1, is_dense, 1);
    g.clipped = !are_inside(&g.down, 0, g.height) || !are_inside(&g.across, 0, g.width);
    const uint32_t rows = out->channels, rows_a_group = rows / l->groups, count = (uint32_t)l->kernel_h * l->kernel_w;
    tap *taps = (tap *)(void *)scratch;
    uint32_t *row = scratch + (count + 1u) * TAP_WORDS;
    channel k = {
        .packed = row,
        .taps = taps,
        .channels = (uint32_t)in->channels / l->groups,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
        .plane = in->plane,
        .down = l->dilation_h * in->pitch,
        .across = l->dilation_w,
        .step = count,
    };
    const uint32_t group_bytes = k.channels * k.plane, row_length = k.channels * count;
    const uint8_t *weights = image + l->weights_at;
    scale_reader scales = open_scales(image + l->parameters_at);
    entry_reader entries = {0};
    if (is_dense) {
        k.dense = (const int8_t *)weights;
        if (count == 1 && !g.clipped) /* the channels as columns of a single one: one loop, not three */
            k.columns = k.channels, k.across = k.plane, k.channels = 1;
    } else {
        entries = open_entries(weights, is_rice);
        read_entry(&entries, is_rice);
        for (uint32_t i = 0; i < count; i++)
            taps[i].behind = pack(i / k.columns * k.down + i % k.columns * k.across + group_bytes, 0);
    }
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        if (c && c % rows_a_group == 0)
            g.input += group_bytes;
        if (!is_dense) {
            k.count = (is_rice ? decode_codes : decode_pairs)(&entries, &k, row_length, taps, row);
            if (!k.count) {
                constant_channel(&g, (int8_t)*scales.at++);
                continue;
            }
        }
        k.scale = read_scale(&scales);
        run_channel(&g, &k);
        if (is_dense)
            k.dense += row_length;
    }
}

void run_dense(const work *w) { run_conv(w); }
void run_pairs(const work *w) { run_conv(w); }
void run_rice(const work *w) { run_conv(w); }
