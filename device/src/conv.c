/* CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED. The output channels of a group read the input channels of that group
 * alone. A row holds the weights of one output channel; a sparse one is decoded once an image, into packed weights. The
 * input's zero point is folded into the bias, and the input's border holds the zero point, so that a weight costs one
 * load and one multiply-accumulate at every output position. Output positions are computed in tiles whose sums stay in
 * registers while the row is walked once. */
#include "internal.h"

typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int8_t zero_point, low, high;
} geometry;

/* How a dense row is walked: how far inputs of neighbouring channels, kernel rows and kernel columns lie apart. */
typedef struct {
    uint32_t channels, rows, columns;
    uint32_t plane, down, across;
} shape;

/* Weights of one output channel: a list of `count` packed weights, or all of them, as `shape` says. */
typedef struct {
    const uint32_t *packed;
    uint32_t count;
    const int8_t *dense;
    const shape *shape;
    row_scale scale;
} channel;

/* One packed weight is offset << 8 | value: how far its input lies from the window's corner, and the int8 value. */
static inline uint32_t pack(uint32_t offset, int8_t value) { return offset << 8 | (uint8_t)value; }
static inline uint32_t packed_offset(uint32_t w) { return w >> 8; }
static inline int32_t packed_value(uint32_t w) { return (int8_t)w; }

/* Call each(weight, inputs) for every weight of the channel, inputs being the window's corner x moved to its input.
 * A macro, since C has no other way to keep the sums in registers. */
#define FOR_EACH_WEIGHT(k, is_dense, x, each)                                                                          \
    if (is_dense) {                                                                                                    \
        const int8_t *weight = (k)->dense, *plane = (x);                                                               \
        for (uint32_t c = 0; c < (k)->shape->channels; c++, plane += (k)->shape->plane) {                              \
            const int8_t *line = plane;                                                                                \
            for (uint32_t ky = 0; ky < (k)->shape->rows; ky++, line += (k)->shape->down) {                             \
                const int8_t *tap = line;                                                                              \
                for (uint32_t kx = 0; kx < (k)->shape->columns; kx++, weight++, tap += (k)->shape->across)             \
                    each((int32_t)*weight, tap)                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    } else {                                                                                                           \
        for (const uint32_t *w = (k)->packed, *end = w + (k)->count; w != end; w++)                                    \
            each(packed_value(*w), (x) + packed_offset(*w))                                                            \
    }

/* Two groups of four output positions, `apart` input bytes from each other: 1 x 8 or 2 x 4 positions. */
SPECIALISE void sum8(const channel *k, int is_dense, const int8_t *x, uint32_t stride, uint32_t apart, int32_t sums[8])
{
    int32_t s0 = k->scale.bias, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
#define EACH(value, inputs)                                                                                            \
    {                                                                                                                  \
        const int32_t v = (value);                                                                                     \
        const int8_t *p = (inputs), *q = p + apart;                                                                    \
        s0 += v * p[0];                                                                                                \
        s1 += v * p[stride];                                                                                           \
        s2 += v * p[2 * stride];                                                                                       \
        s3 += v * p[3 * stride];                                                                                       \
        s4 += v * q[0];                                                                                                \
        s5 += v * q[stride];                                                                                           \
        s6 += v * q[2 * stride];                                                                                       \
        s7 += v * q[3 * stride];                                                                                       \
    }
    FOR_EACH_WEIGHT(k, is_dense, x, EACH)
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3, sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;
}

/* The same with two groups of two: 2 x 2 positions. */
SPECIALISE void sum4(const channel *k, int is_dense, const int8_t *x, uint32_t stride, uint32_t apart, int32_t sums[8])
{
    int32_t s0 = k->scale.bias, s1 = s0, s2 = s0, s3 = s0;
#define EACH(value, inputs)                                                                                            \
    {                                                                                                                  \
        const int32_t v = (value);                                                                                     \
        const int8_t *p = (inputs), *q = p + apart;                                                                    \
        s0 += v * p[0];                                                                                                \
        s1 += v * p[stride];                                                                                           \
        s2 += v * q[0];                                                                                                \
        s3 += v * q[stride];                                                                                           \
    }
    FOR_EACH_WEIGHT(k, is_dense, x, EACH)
#undef EACH
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

SPECIALISE int32_t sum1(const channel *k, int is_dense, const int8_t *x)
{
    int32_t sum = k->scale.bias;
#define EACH(value, inputs) sum += (value) * *(inputs);
    FOR_EACH_WEIGHT(k, is_dense, x, EACH)
#undef EACH
    return sum;
}

/* Scale `count` sums to neighbouring output positions. */
static void put(const geometry *g, const channel *k, const int32_t *sums, uint32_t count, int8_t *to)
{
    const int32_t multiplier = k->scale.multiplier, low = g->low, high = g->high, zero_point = g->zero_point;
    const int shift = k->scale.shift;
    for (const int32_t *end = sums + count; sums != end;) {
        const int32_t scaled = requantise(*sums++, multiplier, shift);
        *to++ = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)zero_point), low, high);
    }
}

SPECIALISE void channel_by_1(const geometry *g, const channel *k, int is_dense, uint32_t y0, uint32_t y1, uint32_t x0,
                             uint32_t x1)
{
    for (uint32_t y = y0; y < y1; y++)
        for (uint32_t x = x0; x < x1; x++) {
            const int32_t sum = sum1(k, is_dense, g->input + y * g->stride_y + x * g->stride_x);
            put(g, k, &sum, 1, g->output + y * g->pitch + x);
        }
}

static void sparse_by_1(const geometry *g, const channel *k, uint32_t y0, uint32_t y1, uint32_t x0, uint32_t x1)
{
    channel_by_1(g, k, 0, y0, y1, x0, x1);
}

static void dense_by_1(const geometry *g, const channel *k, uint32_t y0, uint32_t y1, uint32_t x0, uint32_t x1)
{
    channel_by_1(g, k, 1, y0, y1, x0, x1);
}

typedef void one_by_one(const geometry *, const channel *, uint32_t, uint32_t, uint32_t, uint32_t);

SPECIALISE one_by_one *by_1(int is_dense) { return is_dense ? dense_by_1 : sparse_by_1; }

/* Tiles of rows x columns output positions, two groups of them; what no whole tile covers goes one by one. */
SPECIALISE void channel_by_tiles(const geometry *g, const channel *k, int is_dense, uint32_t rows, uint32_t columns,
                                 uint32_t stride)
{
    const uint32_t group = rows * columns / 2; /* 4 or 2 */
    const uint32_t apart = rows == 2 ? g->stride_y : group * stride;
    const uint32_t whole_y = g->height - g->height % rows, whole_x = g->width - g->width % columns;
    for (uint32_t y = 0; y < whole_y; y += rows)
        for (uint32_t x = 0; x < whole_x; x += columns) {
            const int8_t *from = g->input + y * g->stride_y + x * stride;
            int8_t *to = g->output + y * g->pitch + x;
            int32_t sums[8];
            if (group == 4)
                sum8(k, is_dense, from, stride, apart, sums);
            else
                sum4(k, is_dense, from, stride, apart, sums);
            if (rows == 2) {
                put(g, k, sums, group, to);
                put(g, k, sums + group, group, to + g->pitch);
            } else {
                put(g, k, sums, 2 * group, to);
            }
        }
    if (whole_x < g->width)
        by_1(is_dense)(g, k, 0, whole_y, whole_x, g->width);
    if (whole_y < g->height)
        by_1(is_dense)(g, k, whole_y, g->height, 0, g->width);
}

/* The largest tile that the output's size allows: 1 x 8, 2 x 4 or 2 x 2. */
SPECIALISE void channel_by_largest(const geometry *g, const channel *k, int is_dense, uint32_t stride)
{
    if (g->width >= 8)
        channel_by_tiles(g, k, is_dense, 1, 8, stride);
    else if (g->width >= 4 && g->height >= 2)
        channel_by_tiles(g, k, is_dense, 2, 4, stride);
    else if (g->width >= 2 && g->height >= 2)
        channel_by_tiles(g, k, is_dense, 2, 2, stride);
    else
        by_1(is_dense)(g, k, 0, g->height, 0, g->width);
}

SPECIALISE void channel_by_stride(const geometry *g, const channel *k, int is_dense)
{
    if (g->stride_x == 1)
        channel_by_largest(g, k, is_dense, 1);
    else if (g->stride_x == 2)
        channel_by_largest(g, k, is_dense, 2);
    else
        by_1(is_dense)(g, k, 0, g->height, 0, g->width);
}

static void sparse_channel(const geometry *g, const channel *k) { channel_by_stride(g, k, 0); }

static void dense_channel(const geometry *g, const channel *k) { channel_by_stride(g, k, 1); }

/* The positions of a sparse row, in the order of its entries: kernel row, kernel column, input channel. */
typedef struct {
    uint32_t taps, channels, row_length;
    uint32_t plane;          /* from one channel to the next, packed */
    uint32_t ends[MAX_TAPS]; /* from the corner of a window to each tap's input behind the last channel, packed */
} walk;

static void plan_walk(walk *k, const layer *l, const tensor *in)
{
    k->taps = (uint32_t)l->kernel_h * l->kernel_w;
    k->channels = (uint32_t)in->channels / l->groups;
    k->row_length = k->taps * k->channels;
    k->plane = pack(in->plane, 0);
    uint32_t *end = k->ends;
    for (uint32_t y = 0; y < l->kernel_h; y++)
        for (uint32_t x = 0; x < l->kernel_w; x++)
            *end++ = pack(y * l->dilation_h * in->pitch + x * l->dilation_w, 0) + k->channels * k->plane;
}

/* Decode the reader's next row into packed weights; returns how many. */
SPECIALISE uint32_t decode_row(entry_reader *reader, int is_rice, const walk *k, uint32_t *row)
{
    if (reader->next >= k->row_length) {
        reader->next -= k->row_length;
        return 0;
    }
    const uint32_t channels = k->channels, plane = k->plane;
    entry_reader r = *reader;
    uint32_t *to = row;
    for (const uint32_t *end = k->ends, *last = end + k->taps; end != last; end++) {
        r.next -= channels; /* now below zero, from the tap's last channel backwards, while it belongs to the tap */
        for (const uint32_t behind = *end; (int32_t)r.next < 0; read_entry(&r, is_rice))
            *to++ = (behind + r.next * plane) | r.value;
    }
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return (uint32_t)(to - row);
}

static uint32_t decode_pairs(entry_reader *r, const walk *k, uint32_t *row) { return decode_row(r, 0, k, row); }

static uint32_t decode_codes(entry_reader *r, const walk *k, uint32_t *row) { return decode_row(r, 1, k, row); }

static void constant_channel(const geometry *g, int8_t value)
{
    for (uint32_t y = 0; y < g->height; y++)
        for (uint32_t x = 0; x < g->width; x++)
            g->output[y * g->pitch + x] = value;
}

void run_conv(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations,
              uint32_t *row)
{
    geometry g = {
        .input = activations + interior(in) - l->pad_top * in->pitch - l->pad_left,
        .output = activations + interior(out),
        .stride_y = l->stride_h * in->pitch,
        .stride_x = l->stride_w,
        .pitch = out->pitch,
        .height = out->height,
        .width = out->width,
        .zero_point = out->zero_point,
        .low = l->low,
        .high = l->high,
    };
    const uint32_t rows = out->channels, rows_a_group = rows / l->groups;
    const shape dense = {
        .channels = (uint32_t)in->channels / l->groups,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
        .plane = in->plane,
        .down = l->dilation_h * in->pitch,
        .across = l->dilation_w,
    };
    const uint8_t *weights = image + l->weights_at;
    const int is_dense = l->encoding == WEIGHTS_DENSE, is_rice = l->encoding == WEIGHTS_RICE;
    scale_reader scales = open_scales(image + l->parameters_at);
    entry_reader entries = {0};
    walk steps;
    plan_walk(&steps, l, in);
    if (!is_dense) {
        entries = open_entries(weights, is_rice);
        read_entry(&entries, is_rice);
    }
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        if (c && c % rows_a_group == 0)
            g.input += dense.channels * in->plane;
        channel k = {.packed = row, .dense = (const int8_t *)weights + c * steps.row_length, .shape = &dense};
        if (!is_dense) {
            k.count = (is_rice ? decode_codes : decode_pairs)(&entries, &steps, row);
            if (!k.count) {
                constant_channel(&g, (int8_t)*scales.at++);
                continue;
            }
        }
        k.scale = read_scale(&scales);
        (is_dense ? dense_channel : sparse_channel)(&g, &k);
    }
}
