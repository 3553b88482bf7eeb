/* CONV_2D and FULLY_CONNECTED with dense weights. The inputs of a tile of output positions are gathered once for many
 * output channels, in the order of their weights, the zero point for what lies outside; so the kernel's shape, strides
 * and padding are no matter to the multiplication. A row of weights is taken in slices of as many input channels as
 * there is room for, while the sums of some output channels wait. */
#include "dsp.h"
#include "vectors.h"
#include "rows.h"
#include "windows.h"

/* Output positions of a tile, sums that wait for the next slice. */
enum { TILE = 4, WAITING = 64 };

/* The output channels that read the same input channels. */
typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t pitch, plane, height, width; /* of the output */
    axis down, across;
    uint32_t in_pitch, in_plane;
    int8_t zero_point;
    range outputs;
    const int8_t *weights;
    scale_reader scales;
    uint32_t taps, in_channels, channels; /* a kernel's taps, input channels, output channels */
    uint32_t *values; /* gathered inputs */
    uint32_t slice; /* input channels whose inputs at one position there is room for */
} group;

/* Output positions one after another, from position x of the row that begins at `row`, which may end before them. */
typedef struct {
    const int8_t *corner[TILE]; /* of the positions' windows */
    span rows[TILE], columns[TILE];
    int is_adjacent; /* their inputs are neighbours at every tap */
    int is_whole;    /* no window reaches beyond the border */
    int8_t *row;
    uint32_t x;
} tile;

static inline int is_inside(const span *s, uint32_t tap) { return tap >= s->from && tap < s->end; }

static inline int is_whole(const span *s, uint32_t taps) { return s->from == 0 && s->end == taps; }

static void fill(int8_t *to, const int8_t *end, uint32_t step, int8_t value)
{
    for (; to < end; to += step)
        *to = value;
}

/* The inputs of some channels at neighbouring positions, tap after tap. What lies beside the input is read, too. */
static void gather_neighbours(const group *g, const int8_t *corner, const span *inside, uint32_t channels, int8_t *to)
{
    const uint32_t rows = g->down.taps, down = g->down.dilation * g->in_pitch;
    const uint32_t columns = g->across.taps, across = g->across.dilation;
    for (; channels; channels--, corner += g->in_plane) {
        const int8_t *line = corner;
        for (uint32_t ky = 0; ky < rows; ky++, line += down) {
            const int8_t *from = is_inside(inside, ky) ? line : corner + inside->from * down;
            for (uint32_t left = columns; left; left--, from += across, to += TILE)
                copy_bytes(to, from, TILE);
        }
    }
}

/* Position p's inputs in row ky of the kernel; in one that lies outside, those of the first row inside. */
SPECIALISE const int8_t *line_at(const tile *t, uint32_t p, uint32_t ky, uint32_t offset, uint32_t down)
{
    return t->corner[p] + offset + (is_inside(&t->rows[p], ky) ? ky : t->rows[p].from) * down;
}

/* The same at any positions. */
SPECIALISE void gather_anywhere(const group *g, const tile *t, uint32_t positions, uint32_t offset, uint32_t channels,
                                int8_t *to)
{
    const uint32_t rows = g->down.taps, down = g->down.dilation * g->in_pitch;
    const uint32_t across = g->across.dilation, length = g->across.taps * across;
    for (; channels; channels--, offset += g->in_plane)
        for (uint32_t ky = 0; ky < rows; ky++) {
            const int8_t *a = line_at(t, 0, ky, offset, down);
            if (positions == 1) {
                for (const int8_t *end = a + length; a != end; a += across)
                    *to++ = *a;
                continue;
            }
            const int8_t *b = line_at(t, 1, ky, offset, down);
            const int8_t *c = line_at(t, 2, ky, offset, down), *d = line_at(t, 3, ky, offset, down);
            for (uint32_t at = 0; at != length; at += across, to += TILE)
                to[0] = a[at], to[1] = b[at], to[2] = c[at], to[3] = d[at];
        }
}

/* Of kernels of one tap. */
SPECIALISE void gather_points(const group *g, const tile *t, uint32_t positions, uint32_t offset, uint32_t channels,
                              int8_t *to)
{
    const uint32_t step = g->in_plane;
    if (positions == TILE && t->is_adjacent) {
        const int8_t *from = t->corner[0] + offset;
        for (; channels; channels--, from += step, to += TILE)
            copy_bytes(to, from, TILE);
        return;
    }
    const int8_t *a = t->corner[0], *b = t->corner[1], *c = t->corner[2], *d = t->corner[3];
    for (; channels; channels--, offset += step, to += positions) {
        to[0] = a[offset];
        if (positions == TILE)
            to[1] = b[offset], to[2] = c[offset], to[3] = d[offset];
    }
}

/* The zero point for the taps outside, of the position to which `to` belongs. */
static void clip(const group *g, const span *rows, const span *columns, uint32_t positions, uint32_t channels,
                 int8_t *to)
{
    const uint32_t line = g->across.taps * positions, kernel = g->taps * positions;
    const int8_t *end = to + channels * kernel;
    for (uint32_t kx = 0; kx < g->across.taps; kx++)
        if (!is_inside(columns, kx))
            fill(to + kx * positions, end, line, g->zero_point);
    for (uint32_t ky = 0; ky < g->down.taps; ky++)
        if (!is_inside(rows, ky))
            for (int8_t *first = to + ky * line; first < end; first += kernel)
                fill(first, first + line, positions, g->zero_point);
}

/* The inputs of some channels: of every tap, at every position. */
SPECIALISE void gather(const group *g, const tile *t, uint32_t positions, uint32_t channel, uint32_t channels,
                       int8_t *to)
{
    const uint32_t offset = channel * g->in_plane;
    if (g->taps == 1)
        gather_points(g, t, positions, offset, channels, to);
    else if (positions == TILE && t->is_adjacent)
        gather_neighbours(g, t->corner[0] + offset, &t->rows[0], channels, to);
    else
        gather_anywhere(g, t, positions, offset, channels, to);
    if (!t->is_whole)
        for (uint32_t p = 0; p < positions; p++)
            clip(g, &t->rows[p], &t->columns[p], positions, channels, to + p);
}

#if ENTROPI_DSP && !ENTROPI_MVE
enum { VALUE_BYTES = 2 };

/* Four inputs after each other at every position become pairs of 16 bits: the first and third, then the second and
 * fourth. The bytes are the upper half of where the pairs go. */
SPECIALISE void widen(uint32_t positions, uint32_t fours, uint32_t *pairs)
{
    const uint32_t *bytes = pairs + fours * positions;
    for (; fours; fours--, bytes += positions, pairs += 2 * positions) {
        if (positions == 1) {
            const uint32_t four = bytes[0];
            pairs[0] = even_bytes(four), pairs[1] = odd_bytes(four);
            continue;
        }
        const uint32_t a = bytes[0], b = bytes[1], c = bytes[2], d = bytes[3];
        const uint32_t ac = join_lower(a, c), ca = join_upper(a, c), bd = join_lower(b, d), db = join_upper(b, d);
        pairs[0] = even_bytes(ac), pairs[1] = odd_bytes(ac), pairs[2] = even_bytes(ca), pairs[3] = odd_bytes(ca);
        pairs[4] = even_bytes(bd), pairs[5] = odd_bytes(bd), pairs[6] = even_bytes(db), pairs[7] = odd_bytes(db);
    }
}

/* Gather inputs as multiply wants them. Returns how many fours they are; the last one is filled up with zeros. */
SPECIALISE uint32_t prepare(const group *g, const tile *t, uint32_t positions, uint32_t channel, uint32_t channels,
                            uint32_t *values)
{
    const uint32_t fours = (channels * g->taps + 3u) / 4u;
    uint32_t *bytes = values + fours * positions;
    for (uint32_t i = 0; i < positions; i++)
        bytes[fours * positions - 1u - i] = 0;
    gather(g, t, positions, channel, channels, (int8_t *)bytes);
    widen(positions, fours, values);
    return fours;
}

/* Four pairs by one instruction, the pointer moved behind them. */
#define LOAD_FOUR(from, a, b, c, d)                                                                                    \
    register uint32_t a __asm__("r3"), b __asm__("r4"), c __asm__("r5"), d __asm__("r6");                              \
    __asm__("ldmia %0!, {%1, %2, %3, %4}"                                                                              \
            : "+r"(from), "=r"(a), "=r"(b), "=r"(c), "=r"(d)                                                           \
            : "m"(*(const uint32_t(*)[4])(from)))

/* sums[row][p] += weights of the row * inputs at position p. A row is read up to its last four weights, whatever stands
 * there: their inputs are 0. */
NOT_INLINED void multiply_4(const uint32_t *values, uint32_t fours, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    for (const int32_t *end = sums + rows * TILE; sums != end; weights += row_length, sums += TILE) {
        const uint8_t *w = (const uint8_t *)weights;
        const uint32_t *pairs = values;
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        for (uint32_t left = fours; left; left--, w += 4) {
            const uint32_t four = load_u32(w), even = even_bytes(four), odd = odd_bytes(four);
            {
                LOAD_FOUR(pairs, a, b, c, d);
                s0 = multiply_halves(a, even, s0);
                s1 = multiply_halves(b, even, s1);
                s2 = multiply_halves(c, even, s2);
                s3 = multiply_halves(d, even, s3);
            }
            {
                LOAD_FOUR(pairs, a, b, c, d);
                s0 = multiply_halves(a, odd, s0);
                s1 = multiply_halves(b, odd, s1);
                s2 = multiply_halves(c, odd, s2);
                s3 = multiply_halves(d, odd, s3);
            }
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}

#define ADD_FOUR(row, sum)                                                                                             \
    {                                                                                                                  \
        const uint32_t four = load_u32(row);                                                                           \
        sum = multiply_halves(even, even_bytes(four), sum);                                                            \
        sum = multiply_halves(odd, odd_bytes(four), sum);                                                              \
        row += 4;                                                                                                      \
    }

/* The same at one position, for four rows at once; `sums` has room for all of the last four. */
NOT_INLINED void multiply_1(const uint32_t *values, uint32_t fours, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    const uint8_t *row = (const uint8_t *)weights, *const last = row + (rows - 1u) * row_length;
    for (const int32_t *end = sums + rows; sums < end; sums += 4) {
        const uint8_t *a = row, *b = a == last ? a : a + row_length;
        const uint8_t *c = b == last ? b : b + row_length, *d = c == last ? c : c + row_length;
        row = d + row_length;
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        const uint32_t *pairs = values;
        for (uint32_t left = fours; left; left--, pairs += 2) {
            const uint32_t even = pairs[0], odd = pairs[1];
            ADD_FOUR(a, s0)
            ADD_FOUR(b, s1)
            ADD_FOUR(c, s2)
            ADD_FOUR(d, s3)
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}
#else
enum { VALUE_BYTES = 1 };

SPECIALISE uint32_t prepare(const group *g, const tile *t, uint32_t positions, uint32_t channel, uint32_t channels,
                            uint32_t *values)
{
    gather(g, t, positions, channel, channels, (int8_t *)values);
    return channels * g->taps;
}

#if ENTROPI_MVE

/* Sixteen weights at a time; those behind a slice count as 0, whatever inputs stand there. */
NOT_INLINED void multiply_4(const uint32_t *values, uint32_t count, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    for (const int32_t *end = sums + rows * TILE; sums != end; weights += row_length, sums += TILE) {
        const int8_t *w = weights, *x = (const int8_t *)values;
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        for (int32_t left = (int32_t)count; left > 0; left -= SIXTEEN, w += SIXTEEN, x += SIXTEEN * TILE) {
            const int8x16_t sixteen = vldrbq_z_s8(w, vctp8q((uint32_t)left));
            const int8x16x4_t at = vld4q_s8(x); /* of each position */
            s0 = vmladavaq_s8(s0, sixteen, at.val[0]);
            s1 = vmladavaq_s8(s1, sixteen, at.val[1]);
            s2 = vmladavaq_s8(s2, sixteen, at.val[2]);
            s3 = vmladavaq_s8(s3, sixteen, at.val[3]);
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}

/* The same at one position. */
NOT_INLINED void multiply_1(const uint32_t *values, uint32_t count, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    for (const int32_t *end = sums + rows; sums != end; weights += row_length) {
        const int8_t *w = weights, *x = (const int8_t *)values;
        int32_t sum = *sums;
        for (int32_t left = (int32_t)count; left > 0; left -= SIXTEEN, w += SIXTEEN, x += SIXTEEN)
            sum = vmladavaq_s8(sum, vldrbq_z_s8(w, vctp8q((uint32_t)left)), vldrbq_s8(x));
        *sums++ = sum;
    }
}

#else

NOT_INLINED void multiply_4(const uint32_t *values, uint32_t count, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    for (const int32_t *end = sums + rows * TILE; sums != end; weights += row_length, sums += TILE) {
        const int8_t *w = weights, *x = (const int8_t *)values;
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        for (uint32_t left = count; left; left--, x += TILE) {
            const int32_t weight = *w++;
            s0 += weight * x[0];
            s1 += weight * x[1];
            s2 += weight * x[2];
            s3 += weight * x[3];
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}

/* The same at one position, for four rows at once; `sums` has room for all of the last four. */
NOT_INLINED void multiply_1(const uint32_t *values, uint32_t count, const int8_t *weights, uint32_t row_length,
                            uint32_t rows, int32_t *sums)
{
    const int8_t *row = weights, *const last = row + (rows - 1u) * row_length;
    for (const int32_t *end = sums + rows; sums < end; sums += 4) {
        const int8_t *a = row, *b = a == last ? a : a + row_length;
        const int8_t *c = b == last ? b : b + row_length, *d = c == last ? c : c + row_length;
        row = d + row_length;
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        const int8_t *x = (const int8_t *)values;
        for (uint32_t left = count; left; left--) {
            const int32_t value = *x++;
            s0 += value * *a++;
            s1 += value * *b++;
            s2 += value * *c++;
            s3 += value * *d++;
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}

#endif
#endif

/* A tile of an output channel, whose rows may end within it. */
SPECIALISE void put_tile(const group *g, const tile *t, uint32_t positions, const row_scale *scale, const int32_t *sums,
                         int8_t *row)
{
    for (uint32_t x = t->x, count; positions; positions -= count, sums += count, x = 0, row += g->pitch) {
        count = g->width - x < positions ? g->width - x : positions;
        put(scale, &g->outputs, sums, count, row + x);
    }
}

/* All output channels at a tile. */
SPECIALISE void run_tile(const group *g, const tile *t, uint32_t positions)
{
    const uint32_t row_length = g->in_channels * g->taps, room = g->slice / positions, most = WAITING / positions;
    int32_t sums[WAITING];
    scale_reader scales = g->scales;
    int8_t *row = t->row;
    uint32_t length = 0;
    for (uint32_t c = 0, rows; c < g->channels; c += rows) {
        rows = g->channels - c < most ? g->channels - c : most;
        scale_reader biases = scales;
        for (uint32_t i = 0; i < rows; i++) {
            const int32_t bias = read_scale(&biases).bias;
            for (uint32_t p = 0; p < positions; p++)
                sums[i * positions + p] = bias;
        }
        const int8_t *weights = g->weights + c * row_length;
        for (uint32_t from = 0, count; from < g->in_channels; from += count, weights += count * g->taps) {
            count = g->in_channels - from < room ? g->in_channels - from : room;
            if (c == 0 || count < g->in_channels)
                length = prepare(g, t, positions, from, count, g->values);
            (positions == TILE ? multiply_4 : multiply_1)(g->values, length, weights, row_length, rows, sums);
        }
        for (uint32_t i = 0; i < rows; i++, row += g->plane) {
            const row_scale scale = read_scale(&scales);
            put_tile(g, t, positions, &scale, sums + i * positions, row);
        }
    }
}

NOT_INLINED void run_tile_4(const group *g, const tile *t) { run_tile(g, t, TILE); }
NOT_INLINED void run_tile_1(const group *g, const tile *t) { run_tile(g, t, 1); }

static void run_group(const group *g)
{
    const uint32_t positions = g->height * g->width, tiled = g->slice < TILE ? 0 : positions - positions % TILE;
    tile t = {{0}, {{0}}, {{0}}, 0, 0, 0, 0};
    for (uint32_t at = 0, y = 0, x = 0, count; at < positions; at += count) {
        count = at < tiled ? TILE : 1;
        t.row = g->output + y * g->pitch;
        t.x = x;
        t.is_adjacent = g->across.stride == 1 && x + TILE <= g->width;
        t.is_whole = 1;
        for (uint32_t p = 0; p < count; p++) {
            t.rows[p] = taps_inside(&g->down, y);
            t.columns[p] = taps_inside(&g->across, x);
            t.is_whole &= is_whole(&t.rows[p], g->down.taps) && is_whole(&t.columns[p], g->across.taps);
            const int is_outside = t.rows[p].from == t.rows[p].end;
            const uint32_t top = is_outside ? g->down.begin : y * g->down.stride; /* some row that there is */
            if (is_outside)
                t.rows[p] = (span){0, 0};
            t.corner[p] = g->input + top * g->in_pitch + x * g->across.stride;
            if (++x == g->width)
                x = 0, y++;
        }
        (count == TILE ? run_tile_4 : run_tile_1)(g, &t);
    }
}

void run_dense(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    group g = {
        .input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .output = w->activations + interior(out),
        .pitch = out->pitch,
        .plane = out->plane,
        .height = out->height,
        .width = out->width,
        .down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom,
                      out->height),
        .across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right,
                        out->width),
        .in_pitch = in->pitch,
        .in_plane = in->plane,
        .zero_point = in->zero_point,
        .outputs = range_of(l, out),
        .weights = (const int8_t *)w->image + l->weights_at,
        .scales = open_scales(w->image + l->parameters_at),
        .taps = (uint32_t)l->kernel_h * l->kernel_w,
        .in_channels = in->channels / l->groups,
        .channels = out->channels / l->groups,
        .values = w->scratch,
    };
    g.slice = GATHERED_WORDS * 4u / VALUE_BYTES / g.taps;
    for (uint32_t i = 0; i < l->groups; i++) {
        run_group(&g);
        g.input += g.in_channels * g.in_plane;
        g.output += g.channels * g.plane;
        g.weights += g.channels * g.in_channels * g.taps;
        g.scales.at += g.channels * g.scales.bytes;
    }
}
