/* Convolutions with sparse weights. A row holds the weights of one output channel; it is decoded once an image, into
 * pairs of weights. A tile of output positions keeps its sums in registers while it walks the pairs once; a pair takes
 * two inputs for each position, and a core with DSP instructions multiplies and adds both at once.
 *
 * The input's zero point is folded into the bias, and the input's border holds the zero point. What a window reaches
 * beyond the border counts as the zero point, too. Above and below, the rows of the kernel that lie there are left out,
 * and what they would add goes into the bias. To the left and right, the windows read whatever lies beside the input,
 * and then take back what that has added. */
#include "internal.h"
#include "mve.h"
#include "windows.h"

#if !ENTROPI_MVE

/* Two weights: how far the input of each lies from the window's corner, and their values, int16, the first one lower.
 * The last weight of an odd number has a partner of value 0. */
typedef struct {
    uint32_t offset[2];
    uint32_t values;
} pair;

/* One of the kernel's positions. */
typedef struct {
    uint32_t behind; /* from a window's corner to the tap's input behind the last channel */
    uint32_t start;  /* where the offset of the row's first weight of the tap, or of a later tap, lies: 32 bits of it */
} tap;

/* Weights of one output channel, or of some rows of its kernel. */
typedef struct {
    pair *pairs, *end;
    uint32_t rest; /* of the number of pairs, divided by four */
    int is_usual;  /* outputs are usual_output of this scale */
    int is_plain;  /* and all windows inside the border at the sides */
    usual_scale usual;
    row_scale scale;
    const tap *taps; /* and one behind the last */
    uint32_t rows, columns;
} channel;

typedef struct geometry geometry;

/* Tiles of output positions in neighbouring rows and columns. */
typedef struct {
    uint32_t from, to;          /* where the first window and the first output lie behind the geometry's */
    uint32_t lines, width;      /* of tiles, of positions */
    int32_t next_from, next_to; /* from behind one line of tiles to the next one */
    uint32_t end;               /* the column behind the last */
} area;

/* Compute an area of whole tiles. */
typedef void run_tiles(const geometry *g, const channel *k, const area *a);

/* Areas that together are some rows of output positions. */
enum { MOST_PARTS = 3 };
typedef struct {
    uint32_t count;
    run_tiles *run[MOST_PARTS];
    area areas[MOST_PARTS];
} parts;

struct geometry {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int32_t input_zero_point;
    range outputs;
    axis down, across;
    int is_inside; /* no window reaches beyond the border at the left or right */
    run_tiles *wide;
    uint32_t rows, columns; /* of a wide tile */
    parts whole;            /* the rows all of whose windows have every row of the kernel */
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
    return bytes / (uint32_t)sizeof *pairs * 2u + (bytes % (uint32_t)sizeof *pairs != 0);
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

/* Add the products of a channel's pairs, of which there is one at least, to a tile's sums, s[0] to s[3]; x is the corner of the window of its first
 * position, and the tile has `columns` of its 4 positions in each row, or is a single one. */
SPECIALISE void add_pairs(const channel *k, const int8_t *x, uint32_t down, uint32_t columns, uint32_t stride,
                          int32_t *s)
{
    for (const pair *p = k->pairs; p != k->end; p++) {
        const int8_t *a = x + p->offset[0], *b = x + p->offset[1];
        const int32_t v = (int16_t)p->values, w = (int32_t)p->values >> 16;
        s[0] += v * a[0] + w * b[0];
        if (columns > 1)
            s[1] += v * a[stride] + w * b[stride];
        if (columns == 4) {
            s[2] += v * a[2 * stride] + w * b[2 * stride];
            s[3] += v * a[3 * stride] + w * b[3 * stride];
        } else if (columns == 2) {
            s[2] += v * a[down] + w * b[down];
            s[3] += v * a[down + stride] + w * b[down + stride];
        }
    }
}

#if ENTROPI_DSP

/* add_pairs for tiles, in steps of one pair: r4 and r5 are the offsets of its inputs, r6 its two values, x the window's
 * corner, and y another corner for the sums s2 and s3. Compilers spill where they unroll these steps. The first of four
 * steps is entered so that the rest of the list is a multiple of four. */
#define FOUR_STEPS(step)                                                                                               \
    "tbb [pc, %[t]]\n"                                                                                                 \
    "0: .byte (1f - 0b) / 2, (4f - 0b) / 2, (3f - 0b) / 2, (2f - 0b) / 2\n"                                            \
    "1:" step "2:" step "3:" step "4:" step "cmp %[p], %[end]\n"                                                       \
    "bne 1b\n"

/* A register holds two neighbouring inputs for the first value, and above them two for the second. */
#define ADD_NEIGHBOURS(inputs, sum, next)                                                                              \
    "sxtb16 r4, " inputs "\n"                                                                                          \
    "sxtb16 " inputs ", " inputs ", ror #8\n"                                                                          \
    "smlad %[" sum "], r4, r6, %[" sum "]\n"                                                                           \
    "smlad %[" next "], " inputs ", r6, %[" next "]\n"

/* Bytes 1 and 3 of a register are the inputs of two sums for one value, the bottom or the top half of r6. */
#define ADD_ODD_BYTES(inputs, half, sum, next)                                                                         \
    "sxtb16 " inputs ", " inputs ", ror #8\n"                                                                          \
    "smlab" half " %[" sum "], " inputs ", r6, %[" sum "]\n"                                                           \
    "smlat" half " %[" next "], " inputs ", r6, %[" next "]\n"

#define STEP_1X4                                                                                                       \
    "ldmia %[p]!, {r4, r5, r6}\n"                                                                                      \
    "ldr r4, [%[x], r4]\n"                                                                                             \
    "ldr r5, [%[x], r5]\n"                                                                                             \
    "pkhbt %[t], r4, r5, lsl #16\n"                                                                                    \
    "pkhtb r5, r5, r4, asr #16\n" ADD_NEIGHBOURS("%[t]", "s0", "s1") ADD_NEIGHBOURS("r5", "s2", "s3")

#define STEP_2X2                                                                                                       \
    "ldmia %[p]!, {r4, r5, r6}\n"                                                                                      \
    "ldrh %[t], [%[x], r4]\n"                                                                                          \
    "ldrh r5, [%[x], r5]\n"                                                                                            \
    "pkhbt %[t], %[t], r5, lsl #16\n" ADD_NEIGHBOURS("%[t]", "s0", "s1")                                               \
    "ldrd r4, r5, [%[p], #-12]\n"                                                                                      \
    "ldrh %[t], [%[y], r4]\n"                                                                                          \
    "ldrh r5, [%[y], r5]\n"                                                                                            \
    "pkhbt %[t], %[t], r5, lsl #16\n" ADD_NEIGHBOURS("%[t]", "s2", "s3")

#define STEP_STRIDE_2                                                                                                  \
    "ldmia %[p]!, {r4, r5, r6}\n"                                                                                      \
    "ldr %[t], [%[x], r4]\n" ADD_ODD_BYTES("%[t]", "b", "s0", "s1")                                                    \
    "ldr %[t], [%[x], r5]\n" ADD_ODD_BYTES("%[t]", "t", "s0", "s1")                                                    \
    "ldr r4, [%[y], r4]\n" ADD_ODD_BYTES("r4", "b", "s2", "s3")                                                        \
    "ldr r5, [%[y], r5]\n" ADD_ODD_BYTES("r5", "t", "s2", "s3")

/* The registers are named, since not every compiler finds them for so many operands. */
#define ADD_IN_STEPS(step, x_at, y_at)                                                                                 \
    {                                                                                                                  \
        const int8_t *const at = (x_at), *const other = (y_at);                                                        \
        const pair *const first = k->pairs, *const last = k->end;                                                      \
        const uint32_t rest = k->rest;                                                                                 \
        register const int8_t *x_ __asm__("r2") = at, *y_ __asm__("r3") = other;                                       \
        register const pair *p __asm__("r0") = first, *end __asm__("r1") = last;                                       \
        register int32_t s0 __asm__("r8") = s[0], s1 __asm__("r9") = s[1], s2 __asm__("r10") = s[2];                   \
        register int32_t s3 __asm__("r12") = s[3];                                                                     \
        register uint32_t t __asm__("lr") = rest;                                                                      \
        __asm__ volatile(FOUR_STEPS(step)                                                                              \
                         : [p] "+r"(p), [t] "+r"(t), [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3)        \
                         : [end] "r"(end), [x] "r"(x_), [y] "r"(y_)                                                    \
                         : "r4", "r5", "r6", "cc", "memory");                                                          \
        s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;                                                                    \
    }

SPECIALISE void add_pairs_of_tile(const channel *k, const int8_t *x, uint32_t down, uint32_t columns, uint32_t stride,
                                  int32_t *s)
{
    if (columns == 4 && stride == 1)
        ADD_IN_STEPS(STEP_1X4, x, x)
    else if (columns == 2 && stride == 1)
        ADD_IN_STEPS(STEP_2X2, x, x + down)
    else if (columns == 4)
        ADD_IN_STEPS(STEP_STRIDE_2, x - 1, x + 3)
    else
        ADD_IN_STEPS(STEP_STRIDE_2, x - 1, x - 1 + down)
}

#else
#define add_pairs_of_tile add_pairs
#endif

SPECIALISE void tiles(const geometry *g, const channel *k, const area *a, uint32_t rows, uint32_t columns,
                      uint32_t stride)
{
    const uint32_t across = stride ? stride : g->stride_x;
    const int8_t *x = g->input + a->from;
    int8_t *to = g->output + a->to;
    for (uint32_t lines = a->lines;;) {
        int8_t *const last = to + a->width;
        do {
            const int32_t bias = k->scale.bias;
            int32_t s[4] = {bias, bias, bias, bias};
            if (columns > 1)
                add_pairs_of_tile(k, x, g->stride_y, columns, across, s);
            else
                add_pairs(k, x, g->stride_y, columns, across, s);
            if (k->is_plain || (k->is_usual && are_inside(&g->across, a->end - (uint32_t)(last - to), columns))) {
                const usual_scale usual = k->usual;
                int8_t *const rest = rows > 1 ? to + g->pitch : to + 2;
                to[0] = usual_output(s[0], &usual);
                if (columns > 1) {
                    to[1] = usual_output(s[1], &usual);
                    rest[0] = usual_output(s[2], &usual);
                    rest[1] = usual_output(s[3], &usual);
                }
            } else {
                int32_t sums[4] = {s[0], s[1], s[2], s[3]};
                finish_tile(g, k, x, a->end - (uint32_t)(last - to), rows, columns, sums, to);
            }
            to += columns, x += columns * across;
        } while (to != last);
        if (!--lines)
            return;
        x += a->next_from, to += a->next_to;
    }
}

#define TILES(name, rows, columns, stride)                                                                             \
    static void name(const geometry *g, const channel *k, const area *a)                                               \
    {                                                                                                                  \
        tiles(g, k, a, rows, columns, stride);                                                                         \
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

static void add_part(const geometry *g, parts *p, run_tiles *run, uint32_t rows, uint32_t y, uint32_t y_end,
                     uint32_t x, uint32_t x_end)
{
    if (y == y_end || x == x_end)
        return;
    p->run[p->count] = run;
    p->areas[p->count++] = (area){
        .from = y * g->stride_y + x * g->stride_x,
        .to = y * g->pitch + x,
        .lines = (y_end - y) / rows,
        .width = x_end - x,
        .next_from = (int32_t)(rows * g->stride_y) - (int32_t)((x_end - x) * g->stride_x),
        .next_to = (int32_t)(rows * g->pitch - (x_end - x)),
        .end = x_end,
    };
}

/* Output rows y..end - 1: wide tiles, and single positions at the right and below. */
static parts divide(const geometry *g, uint32_t y, uint32_t end)
{
    const uint32_t y_whole = end - (end - y) % g->rows, x_whole = g->width - g->width % g->columns;
    parts p = {0};
    add_part(g, &p, g->wide, g->rows, y, y_whole, 0, x_whole);
    add_part(g, &p, positions, 1, y, y_whole, x_whole, g->width);
    add_part(g, &p, positions, 1, y_whole, end, 0, g->width);
    return p;
}

static void run_parts(const geometry *g, const channel *k, const parts *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        p->run[i](g, k, &p->areas[i]);
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
    cut.end = k->pairs + (end + 1u) / 2u;
    cut.rest = (uint32_t)(cut.end - cut.pairs) & 3u;
    if (first == end) {
        int8_t *const to = g->output + y * g->pitch;
        put(&cut.scale, &g->outputs, &cut.scale.bias, 1, to);
        for (uint32_t x = 1; x < g->width; x++)
            to[x] = to[0];
        return;
    }
    const parts row = divide(g, y, y + 1);
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
    run_parts(g, &cut, &row);
    *first_pair = first_whole;
    *last_pair = last_whole;
}

/* Every output position of a channel. */
static void run_channel(const geometry *g, const channel *k)
{
    run_parts(g, k, &g->whole);
    for (uint32_t y = 0; y < g->down.whole_from; y++)
        run_cut_row(g, k, y);
    for (uint32_t y = g->down.whole_end; y < g->height; y++)
        run_cut_row(g, k, y);
}

/* A row that is being decoded. */
typedef struct {
    tap *t, *last; /* the next tap, and behind the last one */
    uint32_t behind, channels;
} tap_reader;

/* Enter the tap of the entry that has been read ahead: from the tap's last channel backwards, its channel is then below
 * zero. 0 where the row ends before it. */
SPECIALISE int enter_tap(tap_reader *taps, entry_reader *r, const uint32_t *start)
{
    while ((int32_t)r->next >= 0) {
        taps->t->start = (uint32_t)(uintptr_t)start;
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
    int goes_on = enter_tap(&taps, &r, to->offset);
    while (goes_on) {
        const int32_t first = r.value;
        to->offset[0] = to->offset[1] = taps.behind + r.next * plane;
        read_entry(&r, is_rice);
        if (!enter_tap(&taps, &r, to->offset + 1)) {
            to++->values = join_values(first, 0);
            break;
        }
        to->offset[1] = taps.behind + r.next * plane;
        to->values = join_values(first, r.value);
        to++;
        read_entry(&r, is_rice);
        goes_on = enter_tap(&taps, &r, to->offset);
    }
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return to;
}

NOT_INLINED pair *decode_pairs(entry_reader *r, tap_reader taps, uint32_t plane, pair *to)
{
    return decode_row(r, 0, taps, plane, to);
}

NOT_INLINED pair *decode_codes(entry_reader *r, tap_reader taps, uint32_t plane, pair *to)
{
    return decode_row(r, 1, taps, plane, to);
}

static void constant_channel(const geometry *g, int8_t value)
{
    for (uint32_t y = 0; y < g->height; y++)
        for (uint32_t x = 0; x < g->width; x++)
            g->output[y * g->pitch + x] = value;
}

/* The rows of a layer. */
typedef struct {
    uint32_t count, a_group; /* rows */
    uint32_t length;         /* positions of a row */
    uint32_t input_plane, output_plane;
    const uint8_t *weights, *scales;
    tap_reader taps; /* before the first */
} row_list;

/* The sum of the reader's next row, which holds entries, at one output position. */
SPECIALISE int32_t sum_row(entry_reader *reader, int is_rice, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    entry_reader r = *reader;
    int32_t sum = 0;
    int goes_on = enter_tap(&taps, &r, NULL);
    do {
        sum += r.value * corner[taps.behind + r.next * plane];
        read_entry(&r, is_rice);
        goes_on = enter_tap(&taps, &r, NULL);
    } while (goes_on);
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return sum;
}

NOT_INLINED int32_t sum_of_pairs(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    return sum_row(r, 0, taps, plane, corner);
}

NOT_INLINED int32_t sum_of_codes(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    return sum_row(r, 1, taps, plane, corner);
}

/* How the rows are read. */
typedef struct {
    int is_rice;
    pair *(*decode)(entry_reader *r, tap_reader taps, uint32_t plane, pair *to);
    int32_t (*sum)(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner);
} form;

/* Layers of one output position, inside the border. */
static void run_position(geometry *g, const row_list *rows, const form *f)
{
    const uint32_t length = rows->length, plane = rows->input_plane;
    scale_reader scales = open_scales(rows->scales);
    entry_reader r = open_entries(rows->weights, f->is_rice);
    read_entry(&r, f->is_rice);
    uint32_t group_end = rows->a_group;
    for (uint32_t c = 0; c < rows->count; c++, g->output += rows->output_plane) {
        if (c == group_end) {
            group_end += rows->a_group;
            g->input += rows->taps.channels * plane;
        }
        if (r.next >= length) {
            r.next -= length;
            *g->output = (int8_t)*scales.at++;
            continue;
        }
        const row_scale scale = read_scale(&scales);
        const int32_t sum = scale.bias + f->sum(&r, rows->taps, plane, g->input);
        put(&scale, &g->outputs, &sum, 1, g->output);
    }
}

static void run_map(geometry *g, const row_list *rows, channel *k, const form *f)
{
    scale_reader scales = open_scales(rows->scales);
    entry_reader entries = open_entries(rows->weights, f->is_rice);
    read_entry(&entries, f->is_rice);
    uint32_t group_end = rows->a_group;
    for (uint32_t c = 0; c < rows->count; c++, g->output += rows->output_plane) {
        if (c == group_end) {
            group_end += rows->a_group;
            g->input += rows->taps.channels * rows->input_plane;
        }
        if (entries.next >= rows->length) {
            entries.next -= rows->length;
            constant_channel(g, (int8_t)*scales.at++);
            continue;
        }
        k->end = f->decode(&entries, rows->taps, rows->input_plane, k->pairs);
        k->rest = (uint32_t)(k->end - k->pairs) & 3u;
        k->scale = read_scale(&scales);
        k->is_usual = is_usual(&k->scale, &g->outputs);
        k->is_plain = k->is_usual && g->is_inside;
        if (k->is_usual)
            k->usual = usual_of(&k->scale, &g->outputs);
        run_channel(g, k);
    }
}

/* Most columns of a map that are split, and how many times more weight bytes x positions than map bytes pay for it. */
enum { MOST_SPLIT = 128, SPLIT_PAYS = 64 };

/* Whether a stride of 2 is made one of 1: the columns of even number in each row of the input lie before the others
 * while the layer runs. A tile's inputs are then neighbours. */
static int is_split(const geometry *g, const layer *l, const tensor *in)
{
    return l->stride_w == 2 && l->groups == 1 && g->is_inside && g->width >= 4 && in->pitch <= MOST_SPLIT &&
           (uint64_t)l->weights_length * g->width * g->height >= (uint64_t)SPLIT_PAYS * in->channels * in->plane;
}

/* Where a column lies then, from the first one, border included. */
static uint32_t split_column(const tensor *in, uint32_t column)
{
    return column / 2u + column % 2u * ((in->pitch + 1u) / 2u);
}

static void split_columns(geometry *g, const layer *l, const tensor *in, int8_t *row)
{
    int8_t odd[MOST_SPLIT / 2];
    for (const int8_t *const last = row + in->channels * in->plane; row != last;) {
        const int8_t *from = row, *const end = row + in->pitch;
        int8_t *to = row, *waiting = odd;
        while (from != end) {
            *to++ = *from++;
            if (from != end)
                *waiting++ = *from++;
        }
        row = to + in->pitch / 2u;
        for (from = odd; to != row;)
            *to++ = *from++;
    }
    g->input -= in->left - l->pad_left;
    g->stride_x = 1;
}

static void merge_columns(const tensor *in, int8_t *row)
{
    int8_t odd[MOST_SPLIT / 2];
    const uint32_t pitch = in->pitch;
    for (const int8_t *const last = row + in->channels * in->plane; row != last; row += pitch) {
        const int8_t *from = row + pitch;
        int8_t *to = row + pitch, *waiting = odd + pitch / 2u;
        while (waiting != odd)
            *--waiting = *--from;
        if (pitch & 1u)
            *--to = *--from;
        for (waiting = odd + pitch / 2u; from != row;) {
            *--to = *--waiting;
            *--to = *--from;
        }
    }
}

static void run_sparse(const work *w, const form *f)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    geometry g = {
        .input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .output = w->activations + interior(out),
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
    g.is_inside = are_inside(&g.across, 0, g.width);
    const uint32_t count = (uint32_t)l->kernel_h * l->kernel_w, channels = (uint32_t)in->channels / l->groups;
    const int split = is_split(&g, l, in);
    int8_t *const first_row = w->activations + in->offset;
    if (split)
        split_columns(&g, l, in, first_row);
    tap *const taps = (tap *)(void *)w->scratch;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t x = i % l->kernel_w * l->dilation_w;
        taps[i].behind = i / l->kernel_w * l->dilation_h * in->pitch + channels * in->plane +
                         (split ? split_column(in, in->left - l->pad_left + x) : x);
    }
    const row_list rows = {
        .count = out->channels,
        .a_group = (uint32_t)out->channels / l->groups,
        .length = channels * count,
        .input_plane = in->plane,
        .output_plane = out->plane,
        .weights = w->image + l->weights_at,
        .scales = w->image + l->parameters_at,
        .taps = {.t = taps, .last = taps + count, .channels = channels},
    };
    channel k = {
        .pairs = (pair *)(void *)(w->scratch + (count + 1u) * TAP_WORDS),
        .taps = taps,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
    };
    if (g.width == 1 && g.height == 1 && g.is_inside && are_inside(&g.down, 0, 1)) {
        run_position(&g, &rows, f);
        return;
    }
    choose_tile(&g);
    g.whole = divide(&g, g.down.whole_from, g.down.whole_end);
    run_map(&g, &rows, &k, f);
    if (split)
        merge_columns(in, first_row);
}

void run_pairs(const work *w)
{
    const form pairs = {0, decode_pairs, sum_of_pairs};
    run_sparse(w, &pairs);
}

void run_rice(const work *w)
{
    const form codes = {1, decode_codes, sum_of_codes};
    run_sparse(w, &codes);
}
#endif
