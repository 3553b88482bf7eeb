/* What the runtime's files share. docs/image-format.md describes the records. */
#ifndef ENTROPI_INTERNAL_H
#define ENTROPI_INTERNAL_H

#include "dsp.h"
#include "entropi.h"
#include "values.h"

#include <limits.h>

#if INT_MAX < INT32_MAX
#error "entropi needs an int of 32 bits; cores of 8 and 16 bits are not supported"
#endif

/* What the linker calls the functions that the files share: none may meet one of the firmware's own. */
#define add_sample entropi_add_sample
#define draw_sample entropi_draw_sample
#define exp_negative entropi_exp_negative
#define head_format entropi_head_format
#define keep_sample entropi_keep_sample
#define locate_head entropi_locate_head
#define log_above_one entropi_log_above_one
#define make_room entropi_make_room
#define read_header entropi_read_header
#define read_layer entropi_read_layer
#define read_tensor entropi_read_tensor
#define read_weight entropi_read_weight
#define run_depthwise entropi_run_depthwise
#define run_usual_add entropi_run_usual_add
#define run_usual_max_pool entropi_run_usual_max_pool
#define score_classes entropi_score_classes
#define standardise entropi_standardise
#define start_again entropi_start_again
#define start_head entropi_start_head
#define take_step entropi_take_step
#define working_words entropi_working_words

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
    uint32_t length, activation_bytes, scratch_words, features;
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
} layer;

image_header read_header(const uint8_t *image);
tensor read_tensor(const uint8_t *image, const image_header *header, uint32_t index);
layer read_layer(const uint8_t *image, const image_header *header, uint32_t index);

/* First value inside the border. */
static inline uint32_t interior(const tensor *t) { return t->offset + t->top * t->pitch + t->left; }

/* The weights of a sparse layer are one list of entries through all its rows, as pairs of bytes or as Rice codes, behind
 * two bytes: the parameter of the codes, and the bits of a value. An entry is a value, which may be 0, and its distance
 * from the entry before it. One entry is read ahead. */
typedef struct {
    const uint8_t *at;    /* the next pair; the two bytes before the codes */
    uint32_t bit;         /* codes: where the next one starts */
    uint32_t unit;        /* codes: what a zero adds to the distance, 2^k; k bits are the remainder */
    uint32_t head;        /* codes: k + 1 bits between the zeros and the value */
    uint32_t value_bits, less; /* codes: of a value; unit - 1 */
    uint32_t next;        /* the entry read ahead lies so many positions after the start of the row */
    int32_t value;        /* and has this value */
} entry_reader;

/* 7 bits of offset in a byte and a code, zeros, a one, the remainder and a value, are what one 32-bit load can hold. */
enum { FORM_BYTES = 2, PAIR_BYTES = 2, LEAST_VALUE_BITS = 2, MOST_VALUE_BITS = 8, MOST_CODE_BITS = 25 };

#if defined(__GNUC__)
#define leading_zeros(x) ((uint32_t)__builtin_clz(x))
#else
static inline uint32_t leading_zeros(uint32_t x)
{
    uint32_t zeros = 0;
    while (!(x & 0x80000000u))
        x <<= 1, zeros++;
    return zeros;
}
#endif

/* The codes from the reader's bit on: 25 bits at least, the first one highest. */
static inline uint32_t code_window(const entry_reader *r)
{
    const uint8_t *p = r->at + (r->bit >> 3);
    return ((uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3]) << (r->bit & 7u);
}

/* Read the next entry ahead. */
SPECIALISE void read_entry(entry_reader *r, int is_rice)
{
    if (is_rice) {
        const uint32_t window = code_window(r), zeros = leading_zeros(window);
        const uint32_t code = window << zeros; /* a one, the remainder, the value */
        r->bit += zeros + r->head + r->value_bits;
        r->value = (int32_t)(code << r->head) >> (32u - r->value_bits);
        r->next = r->next - r->less + zeros * r->unit + (code >> (32u - r->head));
    } else {
        const uint8_t *const at = r->at;
        r->at += PAIR_BYTES;
        r->value = (int8_t)at[0];
        r->next += at[1];
    }
}

/* A reader before the first entry. */
SPECIALISE entry_reader open_entries(const uint8_t *weights, int is_rice)
{
    entry_reader r = {.at = is_rice ? weights : weights + FORM_BYTES, .next = UINT32_MAX};
    if (is_rice) {
        r.bit = 8u * FORM_BYTES;
        r.unit = 1u << weights[0];
        r.less = r.unit - 1u;
        r.head = weights[0] + 1u;
        r.value_bits = weights[1];
    }
    return r;
}

/* What makes outputs of a row's sums, read row after row. A row that holds no entries is one byte, its output. */
typedef struct {
    int32_t bias, multiplier;
    int shift;
} row_scale;

typedef struct {
    const uint8_t *at; /* the next row */
    int lowest_shift;
    uint32_t bytes, shift_at, shift_mask; /* of one row: its length, and where its shift - lowest_shift lies */
    unsigned bias_up, bias_down;          /* shifts that cut the bias out of the 4 bytes at BIAS_AT */
} scale_reader;

enum { SCALES_HEADER = 4, BIAS_AT = 4, SHIFT_BYTE = 8 };

static inline scale_reader open_scales(const uint8_t *parameters)
{
    const uint32_t bias_bytes = parameters[1], shift_bits = parameters[2];
    const int own_byte = shift_bits == SHIFT_BYTE;
    return (scale_reader){
        .at = parameters + SCALES_HEADER,
        .lowest_shift = (int8_t)parameters[0],
        .bytes = BIAS_AT + bias_bytes + (own_byte ? 1u : 0u),
        .shift_at = own_byte ? BIAS_AT + bias_bytes : BIAS_AT,
        .shift_mask = (1u << shift_bits) - 1u,
        .bias_up = 32u - 8u * bias_bytes,
        .bias_down = 32u - 8u * bias_bytes + (own_byte ? 0u : shift_bits),
    };
}

/* One without a bias, as layers other than convolutions have. */
static inline row_scale scale_at(const uint8_t *p)
{
    return (row_scale){.multiplier = load_i32(p), .shift = load_i32(p + 4)};
}

static inline row_scale read_scale(scale_reader *r)
{
    const uint8_t *p = r->at;
    r->at += r->bytes;
    return (row_scale){
        .bias = (int32_t)(load_u32(p + BIAS_AT) << r->bias_up) >> r->bias_down,
        .multiplier = load_i32(p),
        .shift = r->lowest_shift + (int)(p[r->shift_at] & r->shift_mask),
    };
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

/* Words before the activation bytes, an even number: for the taps of a sparse kernel, one more of them, and a decoded
 * row, whose weights take two words and a sixteenth each where the header counts one; or for the gathered inputs of a
 * dense convolution. */
uint32_t working_words(const uint8_t *image, const image_header *header);

/* What a layer kernel works on. */
typedef struct {
    const uint8_t *image;
    layer layer;
    tensor in, second, out; /* second: where the layer has two operands */
    int8s *activations;     /* the start of all */
    uint32_t *scratch;      /* the words before them */
} work;

typedef void kernel(const work *w);

kernel run_dense, run_pairs, run_rice, run_max_pool, run_average_pool, run_add, run_sub, run_mul, run_mean, run_table,
    run_copy, run_softmax;

/* Of a build, NULL for one that was left out: those of convolutions by their encoding, then the others by their kind. */
#define KERNEL_OF(kind, encoding) ((kind) == LAYER_CONV ? (encoding) : WEIGHTS_RICE - LAYER_CONV + (kind))
enum { KERNELS = KERNEL_OF(LAYER_SOFTMAX, 0) + 1 };
extern kernel *const layer_kernels[KERNELS + 1];

/* Tensors share bytes over time, so each producer writes its output's border anew. */
void fill_border(const tensor *t, int8s *activations);

/* Read layer `index` and its tensors into `w`, run it, and write its output's border. */
void run_layer(const image_header *header, uint32_t index, work *w);

/* These do usual cases of one image alone, and return 0 where it is none. */
int run_usual_max_pool(const work *w);
int run_usual_add(const work *w);
int run_depthwise(const work *w); /* of dense weights */

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

/* A head of zeros, and no sample waiting, in an arena that is laid out. */
void start_again(entropi *self);

/* The head in the arena; docs/learning.md has the arithmetic. A weight is its mantissa * 2^exponent. Mantissas are
 * int32_t, [features][classes]; weights of two bytes hold the upper halves of theirs. */
typedef struct {
    int32_t exponent;
    uint32_t bound; /* no mantissa's magnitude is larger */
    uint32_t steps; /* taken so far */
} head_state;

typedef struct {
    const entropi_head_config *config;
    const int8_t *centers;
    const uint8_t *scales;
    float gain;
    uint32_t features, classes;
    head_state *state;
    float *biases;
    uint32_t *known;          /* a bit a class */
    void *weights;            /* int32_t, or int16_t where they are short */
    uint32_t *momentum_bound; /* as state->bound, of momentum; NULL, with the next two, where there is none */
    float *bias_momentum;
    int32_t *momentum;                 /* what the next step keeps of the one before */
    int32_t *bias_gradient, *gradient; /* NULL where the batch is stored instead */
    int32_t *batch_errors;             /* [batch][classes] */
    int8_t *batch;                     /* [batch][features], standardised */
    float *scores;
    int32_t *errors; /* of one sample */
    int32_t *block;  /* gradient of HEAD_BLOCK features */
    int8_t *row;     /* one sample, standardised */
} linear_head;

enum { HEAD_STATE_BYTES = 12, HEAD_BLOCK = 16, KNOWN_BITS = 32 };

/* What holds a batch of more than one sample until its step: a sum of gradients, or the samples. */
static inline int holds_gradient(const entropi_head_config *config)
{
    return config->bytes_per_parameter == 12 && config->batch > 1;
}

static inline int stores_batch(const entropi_head_config *config)
{
    return config->bytes_per_parameter < 12 && config->batch > 1;
}

linear_head locate_head(const entropi *self);

/* Tells records of heads apart that cannot read each other's: the most classes, and the bytes of a weight. */
uint32_t head_format(const entropi *self);

/* A head of zeros in an arena of zeros. */
void start_head(const linear_head *h);

/* Weight number `at` of [features][classes]. */
float read_weight(const linear_head *h, uint32_t at);

/* x[i] = (features[i] - centers[i]) * scales[i] / 16, rounded and clamped to int8 */
void standardise(const linear_head *h, const int8_t *features, int8_t *x);

/* scores[c] = biases[c] + gain * sum over i of weights[i][c] * x[i] */
void score_classes(const linear_head *h, const int8_t *x);

/* Before the first sample of a batch, when none is pending, raise the exponent where the step to come could leave the
 * range of mantissas. error_scale turns errors between -1 and 1 into the integers that add_sample and take_step want.
 * Errors: E_NUMERIC where a weight could reach 2^31 (nothing is changed). */
entropi_status make_room(const linear_head *h, uint32_t pending, float *error_scale);

/* gradient += errors times x, of one sample */
void add_sample(const linear_head *h, int32_t *gradient, const int8_t *x, const int32_t *errors);

/* Take the step of `pending` samples, whose gradient moves no weight further than reach. samples and errors are those
 * of the `held` last ones; the others have been added to the gradient. */
void take_step(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t held, uint32_t pending,
               uint32_t reach);

/* Where a sample of a class is to be kept, so that classes stay even, or NULL; one kept, drawn at random, or NULL. */
int8_t *keep_sample(const entropi *self, uint16_t label);
const int8_t *draw_sample(const entropi *self, uint16_t *label);

/* A hash whose values at 0, 1, 2 ... pass for random numbers. */
static inline uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

/* exp(x) for x <= 0 and log(x) for x >= 1, to about 1e-7 relative, the same bits everywhere. */
float exp_negative(float x);
float log_above_one(float x);

#endif
