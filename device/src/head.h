/* What the files that learn share. */
#ifndef ENTROPI_HEAD_H
#define ENTROPI_HEAD_H

#include "internal.h"

/* A head of zeros, and no sample waiting, in an arena that is laid out. */
void start_again(entropi *self);

/* The head in the arena; docs/learning.md has the arithmetic. A weight is its mantissa * 2^exponent. Mantissas are
 * int32_t, [features][classes]; weights of two bytes hold the upper halves of theirs. */
typedef struct {
    int32_t exponent;
    uint32_t bound; /* no mantissa's magnitude is larger */
    uint32_t steps; /* taken so far */
} head_state;

/* What differs between weights of 12, 8, 4 and 2 bytes a parameter. Those of a build stand in modes.c, NULL for one that
 * was left out. */
typedef struct memory_mode memory_mode;
#define MODE_OF(bytes_per_parameter) ((bytes_per_parameter) / 4)
enum { MODES = MODE_OF(12) + 1 };
extern const memory_mode *const memory_modes[MODES];
extern const memory_mode gradient_and_momentum, momentum_alone, weights_alone, short_weights;

typedef struct {
    const entropi_head_config *config;
    const memory_mode *mode;
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
