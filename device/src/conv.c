/* CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED with dense weights. The output channels of a group read the input
 * channels of that group alone. The input's zero point is folded into the bias, and the input's border holds the zero
 * point, so that a weight costs one load and one multiply-accumulate at every output position. Output positions are
 * computed in tiles whose sums stay in registers while the weights of an output channel are walked once.
 *
 * What a window reaches beyond the border counts as the zero point, too. Above and below, the rows of the kernel that
 * lie there are left out, and what they would add goes into the bias. To the left and right, the windows read whatever
 * lies beside the input, and then take back what that has added. */
#include "internal.h"
#include "windows.h"

/* Weights of one output channel, or of some rows of its kernel. How far inputs of neighbouring channels, kernel rows and
 * kernel columns lie apart is `plane`, `down` and `across`. */
typedef struct {
    const int8_t *weights;
    uint32_t channels, rows, columns;
    uint32_t plane, down, across;
    uint32_t step; /* from the weights of one channel to the next one's */
    row_scale scale;
} channel;

/* Call each(weight, inputs) for every weight of the channel, inputs being the window's corner x moved to its input.
 * A macro, since C has no other way to keep the sums in registers. */
#define FOR_EACH_WEIGHT(k, x, each)                                                                                    \
    {                                                                                                                  \
        const int8_t *kernel = (k)->weights, *plane = (x);                                                             \
        const uint32_t columns = (k)->columns, across = (k)->across;                                                   \
        for (uint32_t c = (k)->channels; c; c--, plane += (k)->plane, kernel += (k)->step) {                           \
            const int8_t *weight = kernel, *line = plane;                                                              \
            for (uint32_t ky = (k)->rows; ky; ky--, line += (k)->down) {                                               \
                const int8_t *tap = line, *end = line + columns * across;                                              \
                for (; tap != end; tap += across, weight++)                                                            \
                    each((int32_t)*weight, tap)                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }

/* Sums of a tile of neighbouring output positions, whose first window's corner is x: two groups of positions `stride`
 * input bytes from each other, the groups `apart`. Not inlined, so that the sums stay in registers. */
typedef void tile_sums(const channel *k, const int8_t *x, uint32_t apart, int32_t *sums);

SPECIALISE void sum8(const channel *k, const int8_t *x, uint32_t stride, uint32_t apart, int32_t *sums)
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
    FOR_EACH_WEIGHT(k, x - 1, EACH) /* so every load is some bytes behind one address a weight */
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3, sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;
}

SPECIALISE void sum4(const channel *k, const int8_t *x, uint32_t stride, uint32_t apart, int32_t *sums)
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
    FOR_EACH_WEIGHT(k, x - 1, EACH) /* so every load is some bytes behind one address a weight */
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

SPECIALISE void sum1(const channel *k, const int8_t *x, int32_t *sums)
{
    int32_t sum = k->scale.bias;
#define EACH(value, inputs) sum += (value) * *(inputs);
    FOR_EACH_WEIGHT(k, x, EACH)
#undef EACH
    *sums = sum;
}

#define TILE_SUMS(name, sum)                                                                                           \
    static void name(const channel *k, const int8_t *x, uint32_t apart, int32_t *sums)                                 \
    {                                                                                                                  \
        (void)apart;                                                                                                   \
        sum;                                                                                                           \
    }
TILE_SUMS(sums_1x8_stride_1, sum8(k, x, 1, 4, sums))
TILE_SUMS(sums_1x8_stride_2, sum8(k, x, 2, 8, sums))
TILE_SUMS(sums_2x4_stride_1, sum8(k, x, 1, apart, sums))
TILE_SUMS(sums_2x4_stride_2, sum8(k, x, 2, apart, sums))
TILE_SUMS(sums_2x2_stride_1, sum4(k, x, 1, apart, sums))
TILE_SUMS(sums_2x2_stride_2, sum4(k, x, 2, apart, sums))
TILE_SUMS(sums_1x1, sum1(k, x, sums))

typedef struct {
    uint32_t rows, columns;
    tile_sums *sums;
} tile;

enum { TILE_1X8, TILE_2X4, TILE_2X2, TILE_1X1, TILES };

/* The tile of a size for a stride of 1 or 2; that of one position is for any stride. */
static tile tile_of(uint32_t size, uint32_t stride)
{
    static tile_sums *const sums[TILES][2] = {
        {sums_1x8_stride_1, sums_1x8_stride_2},
        {sums_2x4_stride_1, sums_2x4_stride_2},
        {sums_2x2_stride_1, sums_2x2_stride_2},
        {sums_1x1, sums_1x1},
    };
    static const uint8_t rows[] = {1, 2, 2, 1}, columns[] = {8, 4, 2, 1};
    return (tile){rows[size], columns[size], sums[size][stride == 2]};
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
    const int8_t *weight = k->weights;
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
    cut->weights += s.from * k->columns;
    *corner += s.from * k->down;
    return cut;
}

/* What the columns from..end - 1 of the kernel have added to a window's sum, more than the zero point would. */
static int32_t added_by(const channel *k, const int8_t *corner, uint32_t from, uint32_t end, int32_t zero_point)
{
    int32_t sum = 0;
    if (from == end)
        return 0;
    const int8_t *kernel = k->weights;
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
static tile largest_tile(const geometry *g)
{
    const uint32_t stride = g->stride_x;
    const int tall = g->height >= 2 && stride <= 2;
    const uint32_t size = g->width >= 8 && stride <= 2 ? TILE_1X8
                          : g->width >= 4 && tall      ? TILE_2X4
                          : g->width >= 2 && tall      ? TILE_2X2
                                                       : TILE_1X1;
    return tile_of(size, stride);
}

void run_dense(const work *w)
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
    g.wide = largest_tile(&g);
    g.single = tile_of(TILE_1X1, 1);
    g.clipped = !are_inside(&g.down, 0, g.height) || !are_inside(&g.across, 0, g.width);
    const uint32_t rows = out->channels, rows_a_group = rows / l->groups, count = (uint32_t)l->kernel_h * l->kernel_w;
    channel k = {
        .weights = (const int8_t *)w->image + l->weights_at,
        .channels = (uint32_t)in->channels / l->groups,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
        .plane = in->plane,
        .down = l->dilation_h * in->pitch,
        .across = l->dilation_w,
        .step = count,
    };
    const uint32_t group_bytes = k.channels * k.plane, row_length = k.channels * count;
    scale_reader scales = open_scales(w->image + l->parameters_at);
    if (count == 1 && !g.clipped) /* the channels as columns of a single one: one loop, not three */
        k.columns = k.channels, k.across = k.plane, k.channels = 1;
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        if (c && c % rows_a_group == 0)
            g.input += group_bytes;
        k.scale = read_scale(&scales);
        run_channel(&g, &k);
        k.weights += row_length;
    }
}
