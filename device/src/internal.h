/* What the runtime's files share. docs/image-format.md describes the records. */
#ifndef ENTROPI_INTERNAL_H
#define ENTROPI_INTERNAL_H

#include "entropi.h"

/* A kernel whose arguments are constants where it is used: one specialised copy a use, at -Os too. */
#if defined(__GNUC__)
#define SPECIALISE static inline __attribute__((always_inline))
#else
#define SPECIALISE static inline
#endif

enum { HEADER_BYTES = 64, TENSOR_BYTES = 16, LAYER_BYTES = 32, CRC_BYTES = 4 };
enum {
    LAYER_CONV = 1,
    LAYER_MAX_POOL = 2,
    LAYER_ADD = 3,
    LAYER_MEAN = 4,
    LAYER_AVERAGE_POOL = 5,
    LAYER_SUB = 6,
    LAYER_MUL = 7,
    LAYER_TABLE = 8,
    LAYER_COPY = 9,
    LAYER_SOFTMAX = 10
};
enum { WEIGHTS_SPARSE = 0, WEIGHTS_DENSE = 1 };
enum { WINDOW_OVER_BORDER = 0, WINDOW_CLIPPED = 1 }; /* what a pool does at the edge */
enum { TABLE_BYTES = 256, SOFTMAX_BYTES = 1024, MAX_SOFTMAX = 256 };
enum { ESCAPE = 255, MAX_TAPS = 121, ADD_HEADROOM_BITS = 20 };

/* The image is little-endian and read byte by byte: no alignment is asked of it, and no byte order of the core. */
static inline uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline int32_t load_i32(const uint8_t *p) { return (int32_t)load_u32(p); }
static inline float load_f32(const uint8_t *p)
{
    union {
        uint32_t bits;
        float value;
    } u = {load_u32(p)};
    return u.value;
}

typedef struct {
    uint32_t length, activation_bytes, row_entries, features;
    uint32_t centers_at, tensors_at, layers_at;
    float input_scale, feature_gain;
    uint16_t tensors, layers, input, output;
    int8_t input_zero_point;
} image_header;

/* A tensor lies in the arena channel by channel, each plane inside a border that holds the zero point: a convolution
 * or pool with padding then needs no test for the edge. */
typedef struct {
    uint32_t offset; /* of the border's first byte, in the activation bytes */
    uint16_t channels, height, width;
    uint8_t top, left, bottom, right;
    int8_t zero_point;
    uint32_t pitch, plane;
} tensor;

typedef struct {
    uint8_t kind, encoding;
    uint16_t input, second, output, groups;
    uint8_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
    int8_t low, high; /* clamp of the output */
    uint32_t parameters_at, weights_at, weights_length;
} layer;

image_header read_header(const uint8_t *image);
tensor read_tensor(const uint8_t *image, const image_header *header, uint32_t index);
layer read_layer(const uint8_t *image, const image_header *header, uint32_t index);

/* First value inside the border. */
static inline uint32_t interior(const tensor *t) { return t->offset + t->top * t->pitch + t->left; }

/* E_IMAGE unless every layer of a CRC-checked image stays inside its tensors, its weights and 32-bit sums. */
entropi_status validate_layers(const uint8_t *image, const image_header *header, uint32_t *stored_weights, uint32_t *macs);

/* Sparse rows of one layer, read in order. */
typedef struct {
    const uint8_t *counts, *deltas;
    const int8_t *values;
} row_reader;

row_reader open_rows(const uint8_t *weights, uint32_t rows);

/* The layer kernels: activations is the start of the activation bytes, row the scratch for one decoded row. */
void run_conv(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations,
              uint32_t *row);
void run_pool(const layer *l, const tensor *in, const tensor *out, int8_t *activations);
void run_add(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations);
void run_mul(const uint8_t *image, const layer *l, const tensor *a, const tensor *b, const tensor *out,
             int8_t *activations);
void run_table(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations);
void run_copy(const layer *l, const tensor *in, const tensor *out, int8_t *activations);
void run_softmax(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations);
void run_mean(const uint8_t *image, const layer *l, const tensor *in, const tensor *out, int8_t *activations);

/* round(x * multiplier / 2^31 * 2^shift), rounded twice as TFLM's default build does: first half up, then half away
 * from zero. multiplier >= 0, -31 <= shift <= 30, and |x| + 2^(-shift - 1) < 2^31, else the result wraps. */
static inline int32_t requantise(int32_t x, int32_t multiplier, int shift)
{
    const int left = shift > 0 ? shift : 0, right = left - shift;
    const uint32_t half = (1u << right) >> 1, keep_sign = right > 0 ? UINT32_MAX : 0;
    const int32_t shifted = (int32_t)((uint32_t)x << left);
    const int32_t high = (int32_t)(((int64_t)shifted * multiplier + ((int64_t)1 << 30)) >> 31);
    return (int32_t)((uint32_t)high + half + ((uint32_t)(high >> 31) & keep_sign)) >> right;
}

static inline int8_t clamp_i8(int32_t x, int32_t low, int32_t high)
{
    return (int8_t)(x < low ? low : x > high ? high : x);
}

/* exp(x) for x <= 0 and log(x) for x >= 1, to about 1e-7 relative, the same bits everywhere. */
float exp_negative(float x);
float log_above_one(float x);

#endif
