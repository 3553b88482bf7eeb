/* CONV_2D. A row holds the weights of one output channel, in the order input channel, kernel row, kernel column. The
 * input's zero point is folded into the bias, and the input's border holds the zero point, so that a weight costs one
 * load and one multiply-accumulate at every output position. */
#include "internal.h"

typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int8_t zero_point, low, high;
} geometry;

typedef struct {
    int32_t bias, multiplier;
    int shift;
} channel;

SPECIALISE void put(const geometry *g, const channel *k, int8_t *to, int32_t sum)
{
    const int32_t scaled = requantise(sum, k->multiplier, k->shift);
    *to = clamp_i8((int32_t)((uint32_t)scaled + (uint32_t)g->zero_point), g->low, g->high);
}

/* One decoded weight is offset << 8 | value: how far its input lies from the window's corner, and the int8 value. */
static inline uint32_t pack(uint32_t offset, int8_t value) { return offset << 8 | (uint8_t)value; }
static inline uint32_t packed_offset(uint32_t w) { return w >> 8; }
static inline int32_t packed_value(uint32_t w) { return (int8_t)w; }

/* Two groups of four output positions, `apart` input bytes from each other: 1 x 8 or 2 x 4 positions. `stride` is a
 * constant wherever this is inlined. */
SPECIALISE void sum8(const uint32_t *row, uint32_t count, const int8_t *x, uint32_t stride, uint32_t apart,
                        int32_t bias, int32_t sums[8])
{
    int32_t a = bias, b = bias, c = bias, d = bias, e = bias, f = bias, g = bias, h = bias;
    for (const uint32_t *end = row + count; row != end; row++) {
        const int32_t w = packed_value(*row);
        const int8_t *p = x + packed_offset(*row), *q = p + apart;
        a += w * p[0];
        b += w * p[stride];
        c += w * p[2 * stride];
        d += w * p[3 * stride];
        e += w * q[0];
        f += w * q[stride];
        g += w * q[2 * stride];
        h += w * q[3 * stride];
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d, sums[4] = e, sums[5] = f, sums[6] = g, sums[7] = h;
}

/* The same with two groups of two: 1 x 4 or 2 x 2 positions. */
SPECIALISE void sum4(const uint32_t *row, uint32_t count, const int8_t *x, uint32_t stride, uint32_t apart,
                        int32_t bias, int32_t sums[4])
{
    int32_t a = bias, b = bias, c = bias, d = bias;
    for (const uint32_t *end = row + count; row != end; row++) {
        const int32_t w = packed_value(*row);
        const int8_t *p = x + packed_offset(*row), *q = p + apart;
        a += w * p[0];
        b += w * p[stride];
        c += w * q[0];
        d += w * q[stride];
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

SPECIALISE int32_t sum1(const uint32_t *row, uint32_t count, const int8_t *x, int32_t bias)
{
    for (const uint32_t *end = row + count; row != end; row++)
        bias += packed_value(*row) * x[packed_offset(*row)];
    return bias;
}

static void channel_by_1(const geometry *g, const channel *k, const uint32_t *row, uint32_t count, uint32_t y0,
                         uint32_t y1, uint32_t x0, uint32_t x1)
{
    for (uint32_t y = y0; y < y1; y++)
        for (uint32_t x = x0; x < x1; x++)
            put(g, k, g->output + y * g->pitch + x,
                sum1(row, count, g->input + y * g->stride_y + x * g->stride_x, k->bias));
}

/* Tiles of rows x columns output positions, two groups of them, until height or width leaves no whole tile. */
SPECIALISE void channel_by_tiles(const geometry *g, const channel *k, const uint32_t *row, uint32_t count,
                                    uint32_t rows, uint32_t columns, uint32_t stride)
{
    const uint32_t group = rows * columns / 2; /* 4 or 2 */
    const uint32_t apart = rows == 2 ? g->stride_y : group * stride;
    const uint32_t whole_y = g->height - g->height % rows, whole_x = g->width - g->width % columns;
    for (uint32_t y = 0; y < whole_y; y += rows)
        for (uint32_t x = 0; x < whole_x; x += columns) {
            const int8_t *from = g->input + y * g->stride_y + x * stride;
            int8_t *to = g->output + y * g->pitch + x, *second = to + (rows == 2 ? g->pitch : group);
            int32_t sums[8];
            if (group == 4)
                sum8(row, count, from, stride, apart, k->bias, sums);
            else
                sum4(row, count, from, stride, apart, k->bias, sums);
            for (uint32_t i = 0; i < group; i++) {
                put(g, k, to + i, sums[i]);
                put(g, k, second + i, sums[group + i]);
            }
        }
    channel_by_1(g, k, row, count, 0, whole_y, whole_x, g->width);
    channel_by_1(g, k, row, count, whole_y, g->height, 0, g->width);
}

/* The largest tile that the output's size allows: 1 x 8, 2 x 4 or 2 x 2. */
SPECIALISE void channel_by_largest(const geometry *g, const channel *k, const uint32_t *row, uint32_t count,
                                      uint32_t stride)
{
    if (g->width >= 8)
        channel_by_tiles(g, k, row, count, 1, 8, stride);
    else if (g->width >= 4 && g->height >= 2)
        channel_by_tiles(g, k, row, count, 2, 4, stride);
    else if (g->width >= 2 && g->height >= 2)
        channel_by_tiles(g, k, row, count, 2, 2, stride);
    else
        channel_by_1(g, k, row, count, 0, g->height, 0, g->width);
}

static void sparse_channel(const geometry *g, const channel *k, const uint32_t *row, uint32_t count)
{
    if (g->stride_x == 1)
        channel_by_largest(g, k, row, count, 1);
    else if (g->stride_x == 2)
        channel_by_largest(g, k, row, count, 2);
    else
        channel_by_1(g, k, row, count, 0, g->height, 0, g->width);
}

/* Where each weight's input lies, as seen from the corner of a window. */
typedef struct {
    uint32_t taps, kernel_w, plane, pitch, reciprocal;
} walk;

/* Decode the reader's next row into packed weights. */
static uint32_t decode_row(row_reader *r, const walk *k, uint32_t *row)
{
    const uint32_t count = load_u16(r->counts);
    uint32_t base = 0, tap = 0;
    r->counts += 2;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t delta;
        do {
            delta = *r->deltas++;
            tap += delta;
            /* tap / taps by multiplication: exact for tap < 255 + 121 and taps <= 121, which the image promises. */
            const uint32_t channels = (tap * k->reciprocal) >> 16;
            tap -= channels * k->taps;
            base += channels * k->plane;
        } while (delta == ESCAPE);
        const uint32_t y = tap / k->kernel_w;
        row[i] = pack(base + y * k->pitch + (tap - y * k->kernel_w), *r->values++);
        tap++;
    }
    return count;
}

/* A dense row at `count` neighbouring output positions, 1 or 4. */
SPECIALISE void dense_sums(const layer *l, const tensor *in, const int8_t *weights, const int8_t *plane,
                              uint32_t stride, uint32_t count, int32_t bias, int32_t sums[4])
{
    int32_t a = bias, b = bias, c = bias, d = bias;
    for (uint32_t i = 0; i < in->channels; i++, plane += in->plane) {
        const int8_t *x = plane;
        for (uint32_t ky = 0; ky < l->kernel_h; ky++, x += in->pitch)
            for (uint32_t kx = 0; kx < l->kernel_w; kx++) {
                const int32_t w = *weights++;
                a += w * x[kx];
                if (count == 4) {
                    b += w * x[kx + stride];
                    c += w * x[kx + 2 * stride];
                    d += w * x[kx + 3 * stride];
                }
            }
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
}

static void dense_channel(const geometry *g, const channel *k, const int8_t *weights, const layer *l,
                          const tensor *in)
{
    int32_t sums[4];
    for (uint32_t y = 0; y < g->height; y++) {
        const int8_t *from = g->input + y * g->stride_y;
        int8_t *to = g->output + y * g->pitch;
        uint32_t x = 0;
        for (; x + 4 <= g->width; x += 4) {
            dense_sums(l, in, weights, from + x * g->stride_x, g->stride_x, 4, k->bias, sums);
            for (uint32_t i = 0; i < 4; i++)
                put(g, k, to + x + i, sums[i]);
        }
        for (; x < g->width; x++) {
            dense_sums(l, in, weights, from + x * g->stride_x, g->stride_x, 1, k->bias, sums);
            put(g, k, to + x, sums[0]);
        }
    }
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
    const uint32_t rows = out->channels, taps = (uint32_t)l->kernel_h * l->kernel_w;
    const uint8_t *biases = image + l->parameters_at, *multipliers = biases + 4 * rows;
    const int8_t *shifts = (const int8_t *)multipliers + 4 * rows;
    const walk k = {taps, l->kernel_w, in->plane, in->pitch, (65536u + taps - 1u) / taps};
    const uint8_t *weights = image + l->weights_at;
    row_reader reader = {0};
    if (l->encoding == WEIGHTS_SPARSE)
        reader = open_rows(weights, rows);
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        const channel ch = {load_i32(biases + 4 * c), load_i32(multipliers + 4 * c), shifts[c]};
        if (l->encoding == WEIGHTS_SPARSE)
            sparse_channel(&g, &ch, row, decode_row(&reader, &k, row));
        else
            dense_channel(&g, &ch, (const int8_t *)weights + c * in->channels * taps, l, in);
    }
}
