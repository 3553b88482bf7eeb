/* entropi: a frozen sparse int8 encoder and a linear head that learns, inside a fixed number of bytes.
 *
 * C99, no malloc, no stdio, no globals, no recursion. The caller owns every buffer. A damaged or hostile image is
 * refused by entropi_open; after that the hot loops carry no checks.
 *
 * Results are bit-identical on every core and compiler as long as floating-point contraction is off
 * (-ffp-contract=off) and no fast-math option is given.
 */
#ifndef ENTROPI_H
#define ENTROPI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ENTROPI_IMAGE_VERSION 6
#define ENTROPI_ARENA_ALIGNMENT 8
#define ENTROPI_STORE_UNIT 32

typedef enum {
    ENTROPI_OK = 0,
    ENTROPI_E_ARGUMENT = -1, /* null pointer, wrong length, label or configuration out of range */
    ENTROPI_E_IMAGE = -2,    /* not an entropi image, damaged (CRC), or inconsistent */
    ENTROPI_E_VERSION = -3,  /* an image or a record of another format version */
    ENTROPI_E_ARENA = -4,    /* the arena is too small or misaligned; need.missing says by how many bytes */
    ENTROPI_E_NUMERIC = -5,  /* loss or weights leave their range; the step was not applied */
    ENTROPI_E_STORE = -6,    /* the store failed to erase, to write or to read back */
    ENTROPI_E_EMPTY = -7,    /* nothing is stored */
    ENTROPI_E_DAMAGED = -8,  /* what is stored is no whole record */
    ENTROPI_E_FOREIGN = -9,  /* a whole record, of another image or of a head of another format */
    ENTROPI_E_KERNEL = -10   /* this build lacks what is asked for: kernels.c a kernel of the image, or modes.c the head's
                              * bytes a parameter */
} entropi_status;

/* What an image holds; see entropi_describe. */
typedef struct {
    uint32_t features;             /* length of the encoder's output */
    uint16_t channels, height, width; /* of the input; its length is their product */
    uint16_t layers;
    float input_scale;             /* real input = (int8 - input_zero_point) * input_scale */
    int8_t input_zero_point;
    uint32_t stored_weights;       /* of convolutions: non-zeros of sparse layers, all of dense ones */
    uint32_t macs;                 /* multiply-accumulates an image, zeros not counted where rows are sparse */
    uint32_t kernels;              /* as bits, from the lowest: which lines of kernels.c the layers need */
} entropi_info;

/* How the head learns. bytes_per_parameter is what each weight costs in the arena:
 *   12  weight, gradient and momentum: any batch without storing its samples
 *    8  weight and momentum; the batch's int8 features are stored instead of a gradient
 *    4  weight alone, changed in place; momentum must be 0
 *    2  weight of 16 bits, rounded stochastically; momentum must be 0
 * 12 and 8 give bit-identical weights. docs/learning.md has the arithmetic. */
typedef struct {
    uint16_t classes;             /* most there can ever be, 2 or more */
    uint16_t batch;               /* samples averaged in one step, 1 or more */
    uint16_t bytes_per_parameter; /* 12, 8, 4 or 2 */
    uint16_t new_classes;         /* below classes: the last so many take part only from their first sample on */
    uint16_t replay;              /* samples kept to be learned again, one beside each new one; 0 for none */
    uint32_t seed;                /* of the draws from those kept, and of stochastic rounding */
    uint32_t steps;               /* to be taken in all, over which the learning rate falls to 0; 0 where unknown */
    float learning_rate;          /* >= 1e-9, < 1e9 */
    float momentum;               /* 0 <= momentum < 1 */
    float weight_decay;           /* >= 0, on weights, not on biases; learning_rate * weight_decay < 0.5 */
    float learning_rate_decay;    /* >= 0, < 1e9; step t, from 0, takes learning_rate / (1 + learning_rate_decay * t),
                                   * times (steps - t) / steps where steps are known; any after them are as the last */
} entropi_head_config;

/* Bytes of arena, part by part. Encoder and learning take turns in the same bytes:
 * total = weights + momentum + gradient + batch + replay + max(encoder, learning). */
typedef struct {
    uint32_t weights;  /* all of a learned head: what entropi_save keeps */
    uint32_t momentum;
    uint32_t gradient;
    uint32_t batch;    /* int8 features and errors waiting for a step */
    uint32_t replay;   /* int8 features and labels kept to be learned again */
    uint32_t encoder;  /* activations and one decoded row of weights, while encoding */
    uint32_t learning; /* one sample, scores and errors of the classes, while learning or predicting */
    uint32_t total;
    uint32_t given;    /* arena_length, as told to entropi_open; 0 from entropi_measure */
    uint32_t missing;  /* total - given where the arena is too small, else 0 */
} entropi_need;

/* entropi_need's parts and total as constant expressions. encoder_bytes is what the image wants for its encoder:
 * ENTROPI_IMAGE_ENCODER_BYTES in the header that comes with an exported image, which also calls these macros. */
#define ENTROPI_WEIGHTS_BYTES(features, classes, bytes_per_parameter)                                                  \
    ENTROPI_ALIGNED(12 + 4ull * ((classes) + ((classes) + 31) / 32) +                                                  \
                    ((bytes_per_parameter) == 2 ? 2ull : 4ull) * (classes) * (features))
#define ENTROPI_MOMENTUM_BYTES(features, classes, bytes_per_parameter)                                                 \
    ((bytes_per_parameter) < 8 ? 0 : ENTROPI_ALIGNED(4 + 4ull * (classes) * ((features) + 1ull)))
#define ENTROPI_GRADIENT_BYTES(features, classes, bytes_per_parameter)                                                 \
    ((bytes_per_parameter) < 12 ? 0 : ENTROPI_ALIGNED(4ull * (classes) * ((features) + 1ull)))
#define ENTROPI_BATCH_BYTES(features, classes, batch, bytes_per_parameter)                                             \
    ((bytes_per_parameter) == 12 || (batch) == 1 ? 0 : ENTROPI_ALIGNED(((features) + 4ull * (classes)) * (batch)))
#define ENTROPI_REPLAY_BYTES(features, classes, replay)                                                                \
    ((replay) == 0 ? 0 : ENTROPI_ALIGNED(8 + 6ull * (classes) + ((features) + 2ull) * (replay)))
#define ENTROPI_LEARNING_BYTES(features, classes) ENTROPI_ALIGNED((features) + 72ull * (classes))
#define ENTROPI_ARENA_BYTES(features, encoder_bytes, classes, batch, bytes_per_parameter, replay)                      \
    (ENTROPI_WEIGHTS_BYTES(features, classes, bytes_per_parameter) +                                                   \
     ENTROPI_MOMENTUM_BYTES(features, classes, bytes_per_parameter) +                                                  \
     ENTROPI_GRADIENT_BYTES(features, classes, bytes_per_parameter) +                                                  \
     ENTROPI_BATCH_BYTES(features, classes, batch, bytes_per_parameter) +                                              \
     ENTROPI_REPLAY_BYTES(features, classes, replay) +                                                                 \
     (ENTROPI_LEARNING_BYTES(features, classes) > (encoder_bytes) ? ENTROPI_LEARNING_BYTES(features, classes)          \
                                                                  : (encoder_bytes)))
#define ENTROPI_ALIGNED(bytes)                                                                                         \
    (((bytes) + ENTROPI_ARENA_ALIGNMENT - 1) / ENTROPI_ARENA_ALIGNMENT * ENTROPI_ARENA_ALIGNMENT)

/* One layer's output while it lies in the arena: value (c, y, x) is values[c * plane + y * pitch + x]. */
typedef struct {
    const int8_t *values;
    uint32_t layer;
    uint16_t channels, height, width;
    uint32_t plane, pitch;
} entropi_activation;

typedef void entropi_observer(void *context, const entropi_activation *activation);

/* Where a learned head is kept: two slots, numbered 0 and 1, each of one or more pages of flash. Each function returns
 * 0 for success; power may fail between and inside any of these calls. docs/storage.md shows one for real flash. */
typedef struct {
    void *context;
    uint32_t slot_bytes; /* of one slot; a record takes need.weights, rounded up to ENTROPI_STORE_UNIT, and two units */
    /* Make every byte of a slot 0xFF. */
    int (*erase)(void *context, uint32_t slot);
    /* Program erased bytes. offset and length are multiples of ENTROPI_STORE_UNIT, so any smaller power of two may be
     * the flash's own unit; data is aligned to ENTROPI_ARENA_ALIGNMENT; no byte is written twice between two erases. */
    int (*write)(void *context, uint32_t slot, uint32_t offset, const void *data, uint32_t length);
    /* Read any bytes. It may fail where a power cut left half-written ones, as flash with ECC does. */
    int (*read)(void *context, uint32_t slot, uint32_t offset, void *data, uint32_t length);
} entropi_store;

/* Slots in memory that keeps its bytes without the core, such as FRAM; for entropi_ram_store. */
typedef struct {
    uint8_t *memory; /* two slots */
    uint32_t slot_bytes;
} entropi_ram;

/* An open encoder with its head. The fields are private. */
typedef struct {
    const uint8_t *image;
    uint8_t *arena;
    entropi_head_config head;
    uint32_t image_length;
    uint32_t features;
    uint32_t momentum_at, gradient_at, batch_at, replay_at, working_at; /* offsets in the arena */
    uint32_t pending;                                                   /* samples waiting for a step */
    uint32_t reach;                                                     /* no weight moves further by them */
} entropi;

/* Validate the image as entropi_open does and say what it holds.
 * Errors: E_ARGUMENT, E_IMAGE, E_VERSION. */
entropi_status entropi_describe(const void *image, size_t image_length, entropi_info *info);

/* Bytes of arena that entropi_open will want; the same number on every machine.
 * Errors: as entropi_describe, and E_ARGUMENT for a head configuration out of range. */
entropi_status entropi_measure(const void *image, size_t image_length, const entropi_head_config *head,
                               entropi_need *need);

/* Validate everything, lay out the arena (aligned to ENTROPI_ARENA_ALIGNMENT) and start with a head of zeros.
 * image and arena must outlive self. need may be NULL.
 * Errors: as entropi_measure, and E_ARENA. */
entropi_status entropi_open(entropi *self, const void *image, size_t image_length, const entropi_head_config *head,
                            void *arena, size_t arena_length, entropi_need *need);

/* Run the encoder: input is int8, channel by channel (C, H, W); features gets the int8 output.
 * Errors: E_ARGUMENT when a length is not the image's. */
entropi_status entropi_encode(entropi *self, const int8_t *input, size_t input_length, int8_t *features,
                              size_t features_length);

/* entropi_encode, showing each layer's output to observer before the next layer runs. */
entropi_status entropi_encode_observed(entropi *self, const int8_t *input, size_t input_length, int8_t *features,
                                       size_t features_length, entropi_observer *observer, void *context);

/* Where there are 64-bit addresses and a compiler with vectors (GCC, Clang), and for firmware not at all: entropi_encode
 * for many images, 32 at a time with the same weights, by vectors with one lane an image. inputs and features lie one
 * image behind the other. It leaves self as it is: several threads can share it, each with an arena of its own of
 * entropi_batch_bytes, of any alignment.
 * Errors: E_ARGUMENT, E_ARENA (the arena is too small). */
size_t entropi_batch_bytes(const entropi *self);
entropi_status entropi_encode_batch(const entropi *self, const int8_t *inputs, size_t images, int8_t *features,
                                    void *arena, size_t arena_length);

/* Class with the highest score and its softmax probability, among the classes known so far.
 * Errors: E_ARGUMENT, E_NUMERIC. */
entropi_status entropi_predict(entropi *self, const int8_t *features, size_t features_length, uint16_t *label,
                               float *score);

/* Take in one labelled sample; loss gets its cross-entropy in nats before the step. The step is applied when the
 * batch is full. With replay, a sample drawn from those kept is taken in after it, as one more of the batch; one of the
 * last new_classes is then told from these alone, and from the others by replay.
 * Errors: E_ARGUMENT, E_NUMERIC (loss not finite, or a weight would reach 2^31: the sample is dropped, the head
 * unchanged). */
entropi_status entropi_learn(entropi *self, const int8_t *features, size_t features_length, uint16_t label,
                             float *loss);

/* Apply the step for a batch that is not full, along the mean gradient of its samples; nothing happens when none is
 * waiting. */
entropi_status entropi_flush(entropi *self);

/* Copy `count` of the head's parameters from number `first` on. They are the weights, [classes][features], and then
 * the biases [classes]. Errors: E_ARGUMENT. */
entropi_status entropi_head(const entropi *self, size_t first, size_t count, float *parameters);

/* Write the head to the slot that does not hold the newest record, CRC last, and read it back: a power cut leaves the
 * old record or the new one. Nothing is written where the newest record holds this very head. Samples that wait for a
 * step are not stored. Errors: E_ARGUMENT (slot too small), E_STORE (the old record still stands). */
entropi_status entropi_save(entropi *self, const entropi_store *store);

/* Bring back the newest whole record of this image and head format; momentum, waiting samples and those kept for replay
 * start at zero. Errors, the head unchanged: E_ARGUMENT; where neither slot holds such a record E_EMPTY, E_DAMAGED,
 * E_FOREIGN, E_VERSION or E_STORE, of two slots' reasons the one that says more. E_STORE with a head of zeros, as after
 * entropi_open: the record could not be read a second time. */
entropi_status entropi_restore(entropi *self, const entropi_store *store);

/* A store on ram, which must outlive it. */
entropi_store entropi_ram_store(entropi_ram *ram);

/* Name of a status such as "E_ARENA", for logs. The table drops out at link time when nobody calls this. */
const char *entropi_status_name(entropi_status status);

/* CRC-32 (IEEE 802.3, reflected, as in zlib); start with crc = 0. */
uint32_t entropi_crc32(uint32_t crc, const void *data, size_t length);

#ifdef __cplusplus
}
#endif
#endif
