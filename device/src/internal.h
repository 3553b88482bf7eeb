/* What the runtime's files share. docs/image-format.md describes the records. */
#ifndef ENTROPI_INTERNAL_H
#define ENTROPI_INTERNAL_H

#include "dsp.h"
#include "entropi.h"
#include "values.h"

#include <float.h>
#include <limits.h>

#if INT_MAX < INT32_MAX
#error "entropi needs an int of 32 bits; cores of 8 and 16 bits are not supported"
#endif
#if FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "entropi needs float arithmetic in float, for the same bits everywhere; on x86 compile with -msse2 -mfpmath=sse"
#endif

/* What the linker calls the functions that the files share: none may meet one of the firmware's own. */
#define add_by_blocks entropi_add_by_blocks
#define add_sample entropi_add_sample
#define by_blocks entropi_by_blocks
#define draw_sample entropi_draw_sample
#define exp_negative entropi_exp_negative
#define gradient_and_momentum entropi_gradient_and_momentum
#define halve_words entropi_halve_words
#define head_format entropi_head_format
#define keep_sample entropi_keep_sample
#define largest_whole entropi_largest_whole
#define largest_word entropi_largest_word
#define locate_head entropi_locate_head
#define log_above_one entropi_log_above_one
#define make_room entropi_make_room
#define memory_modes entropi_memory_modes
#define momentum_alone entropi_momentum_alone
#define read_header entropi_read_header
#define read_layer entropi_read_layer
#define read_tensor entropi_read_tensor
#define read_weight entropi_read_weight
#define run_usual_add entropi_run_usual_add
#define run_usual_max_pool entropi_run_usual_max_pool
#define score_classes entropi_score_classes
#define score_whole entropi_score_whole
#define short_weights entropi_short_weights
#define standardise entropi_standardise
#define start_again entropi_start_again
#define start_head entropi_start_head
#define take_step entropi_take_step
#define weights_alone entropi_weights_alone

/* Those that batch.c compiles once more, for many images at once. */
#if defined(ENTROPI_IMAGES)
#define FOR_IMAGES(name) entropi_batch_##name
#else
#define FOR_IMAGES(name) entropi_##name
#endif
#define fill_border FOR_IMAGES(fill_border)
#define layer_kernels FOR_IMAGES(layer_kernels)
#define put FOR_IMAGES(put)
#define run_add FOR_IMAGES(run_add)
#define run_average_pool FOR_IMAGES(run_average_pool)
#define run_copy FOR_IMAGES(run_copy)
#define run_dense FOR_IMAGES(run_dense)
#define run_depthwise FOR_IMAGES(run_depthwise)
#define run_layer FOR_IMAGES(run_layer)
#define run_max_pool FOR_IMAGES(run_max_pool)
#define run_mean FOR_IMAGES(run_mean)
#define run_mul FOR_IMAGES(run_mul)
#define run_pairs FOR_IMAGES(run_pairs)
#define run_rice FOR_IMAGES(run_rice)
#define run_softmax FOR_IMAGES(run_softmax)
#define run_sub FOR_IMAGES(run_sub)
#define run_table FOR_IMAGES(run_table)

/* A kernel whose arguments are constants where it is used: one specialised copy a use, at -Os too. */
#if defined(__GNUC__)
#define SPECIALISE static inline __attribute__((always_inline))
#define NOT_INLINED static __attribute__((noinline))
#else
#define SPECIALISE static inline
#define NOT_INLINED static
#endif

/* Before a loop whose body is small beside what counting takes. */
#if defined(__clang__)
#define UNROLLED(times) PRAGMA(clang loop unroll_count(times))
#elif defined(__GNUC__)
#define UNROLLED(times) PRAGMA(GCC unroll times)
#else
#define UNROLLED(times)
#endif
#define PRAGMA(text) _Pragma(#text)

/* A pointer that a loop moves is not to be taken apart into a base and an offset, for which no instruction loads two
 * words at once. */
#if defined(__GNUC__)
#define OWN_REGISTER(pointer) __asm__("" : "+r"(pointer));
#else
#define OWN_REGISTER(pointer)
#endif

#if defined(__GNUC__)
#define copy_bytes(to, from, count) (void)__builtin_memcpy(to, from, count)
#else
static inline void copy_bytes(int8_t *to, const int8_t *from, uint32_t count)
{
    while (count--)
        *to++ = *from++;
}
#endif

enum { HEADER_BYTES = 64, TENSOR_BYTES = 16, LAYER_BYTES = 36, CRC_BYTES = 4 };
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
enum { WEIGHTS_DENSE = 0, WEIGHTS_PAIRS = 1, WEIGHTS_RICE = 2 };
enum { WINDOW_PADDED = 0, WINDOW_CLIPPED = 1 }; /* what a pool does at the edge */
enum { TABLE_BYTES = 256, SOFTMAX_BYTES = 1024, MAX_SOFTMAX = 256 };
enum { MAX_TAPS = 121, TAP_WORDS = 2, GATHERED_WORDS = 128, ADD_HEADROOM_BITS = 20 };

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
    uint32_t length, activation_bytes, features;
    uint32_t centers_at, scales_at, tensors_at, layers_at;
    float input_scale, feature_gain;
    uint16_t tensors, layers, input, output;
    int8_t input_zero_point;
} image_header;

/* A tensor lies in the arena channel by channel, each plane inside a border that holds the zero point: a convolution
 * has no work at the edge of one as wide as its padding. */
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
    uint32_t scratch_at; /* in the activation bytes */
} layer;

image_header read_header(const uint8_t *image);
tensor read_tensor(const uint8_t *image, const image_header *header, uint32_t index);
layer read_layer(const uint8_t *image, const image_header *header, uint32_t index);

static inline int same_size(const tensor *a, const tensor *b)
{
    return a->channels == b->channels && a->height == b->height && a->width == b->width;
}

/* First value inside the border. */
static inline uint32_t interior(const tensor *t) { return t->offset + t->top * t->pitch + t->left; }

/* What makes outputs of a row's sums. */
typedef struct {
    int32_t bias, multiplier;
    int shift;
} row_scale;

/* One without a bias, as layers other than convolutions have. */
static inline row_scale scale_at(const uint8_t *p)
{
    return (row_scale){.multiplier = load_i32(p), .shift = load_i32(p + 4)};
}

/* What int8 outputs are moved by and held to. */
typedef struct {
    int32_t zero_point, low, high;
} range;

static inline range range_of(const layer *l, const tensor *out)
{
    return (range){.zero_point = out->zero_point, .low = l->low, .high = l->high};
}

/* Scale `count` sums to neighbouring outputs. The scale's bias is no part of it. */
void put(const row_scale *scale, const range *outputs, const int32s *sums, uint32_t count, int8s *to);

/* What a layer kernel works on. */
typedef struct {
    const uint8_t *image;
    layer layer;
    tensor in, second, out; /* second: where the layer has two operands */
    int8s *activations;     /* the start of all */
    uint32_t *scratch;      /* words that nothing else uses while the layer runs */
} work;

typedef void kernel(const work *w);

kernel run_dense, run_depthwise, run_pairs, run_rice, run_max_pool, run_average_pool, run_add, run_sub, run_mul,
    run_mean, run_table, run_copy, run_softmax;

/* Of a build, NULL for one that was left out: those of convolutions by their encoding, then the others by their kind,
 * then that of dense convolutions with a group for each input channel. */
#define KERNEL_OF(kind, encoding) ((kind) == LAYER_CONV ? (encoding) : WEIGHTS_RICE - LAYER_CONV + (kind))
enum { DEPTHWISE = KERNEL_OF(LAYER_SOFTMAX, 0) + 1, KERNELS };
extern kernel *const layer_kernels[KERNELS + 1];

static inline uint32_t kernel_of(const layer *l, const tensor *in)
{
    if (l->kind == LAYER_CONV && l->encoding == WEIGHTS_DENSE && l->groups == in->channels)
        return DEPTHWISE;
    return KERNEL_OF(l->kind, l->encoding);
}

/* Tensors share bytes over time, so each producer writes its output's border anew. */
void fill_border(const tensor *t, int8s *activations);

/* Read layer `index` and its tensors into `w`, run it, and write its output's border. */
void run_layer(const image_header *header, uint32_t index, work *w);

/* These do usual cases of one image alone, and return 0 where it is none. */
int run_usual_max_pool(const work *w);
int run_usual_add(const work *w);

static inline int has_two_operands(const layer *l)
{
    return l->kind == LAYER_ADD || l->kind == LAYER_SUB || l->kind == LAYER_MUL;
}

static inline int8_t clamp_i8(int32_t x, int32_t low, int32_t high)
{
    return (int8_t)(x < low ? low : x > high ? high : x);
}

/* The scale that nearly all rows have: a multiplier of at least 2^30, a shift to the right by at least two bits, outputs
 * of all of int8. Then requantise and the zero point are two rounded products, or a product and a shift. */
typedef struct {
    int32_t factor, divisor, zero_point; /* divisor: 2^(32 - right), or half of 2^right where products are long */
    int right;
} usual_scale;

static inline int is_usual(const row_scale *scale, const range *outputs)
{
    return scale->multiplier >= 1 << 30 && scale->shift < -1 && outputs->low == INT8_MIN && outputs->high == INT8_MAX;
}

/* add_high(x, x, usual_factor) is multiply_rounded: the factor is 2 * multiplier - 2^32. */
static inline int32_t usual_factor(const row_scale *scale) { return (int32_t)((uint32_t)scale->multiplier << 1); }

static inline usual_scale usual_of(const row_scale *scale, const range *outputs)
{
    const int right = -scale->shift;
    usual_scale s = {
        .factor = usual_factor(scale),
        .divisor = 1 << (ENTROPI_SHORT_MULTIPLY ? right - 1 : 32 - right),
        .zero_point = outputs->zero_point,
        .right = right,
    };
    OWN_REGISTER(s.divisor) /* a product is one instruction, a shift of 64 bits is many */
    return s;
}

static inline int8_t usual_output(int32_t sum, const usual_scale *s)
{
    const int32_t high = add_high(sum, sum, s->factor), away = high + (high >> 31);
#if ENTROPI_SHORT_MULTIPLY
    return clamp_i8(s->zero_point + ((away + s->divisor) >> s->right), INT8_MIN, INT8_MAX);
#else
    return clamp_i8(add_high(s->zero_point, away, s->divisor), INT8_MIN, INT8_MAX);
#endif
}

#endif
