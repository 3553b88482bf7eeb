/* The command loop: each command is one call of the C API (entropi.h), its reply the call's status, what it returned and
 * the ticks it took. Payloads are packed, little-endian, in the order of the C arguments. */
#include <stddef.h>

#include "entropi.h"
#include "flash.h"
#include "port.h"
#include "protocol.h"
#include "startup.h"

/* So that one command does not take the stack of all. */
#define OUT_OF_LINE static __attribute__((noinline))

typedef enum {
    COMMAND_INFO = 1, /* -> entropi_info; bytes of: entropi, arena, frame buffer, stack; the image's CRC; core, compiler */
    COMMAND_OPEN,     /* head config, arena length u32 -> entropi_need; the arena is capped at what the board has */
    COMMAND_ENCODE,   /* input -> features */
    COMMAND_PREDICT,  /* features -> label u16, score f32 */
    COMMAND_LEARN,    /* label u16, features -> loss f32 */
    COMMAND_FLUSH,
    COMMAND_HEAD, /* first u32, count u16 -> those parameters of the head, f32 each */
    COMMAND_STACK, /* -> most bytes of stack used since reset, u32 */
    COMMAND_LAYERS, /* first layer u16, input -> CRC-32 of the output u32, ticks u64: of it and as many more as fit */
    COMMAND_SAVE,   /* -> bytes of a slot, u32, also where it fails */
    COMMAND_RESTORE /* as COMMAND_SAVE */
} command;

/* Set by link.ld and image.S; the addresses are the values. */
extern const uint8_t image_start[], image_end[];
extern uint8_t frame_buffer[], frame_end[], feature_buffer[], feature_end[], arena_start[], arena_end[];

static entropi encoder;
static int is_open;
static uint8_t returned[160]; /* what a reply carries, where that is not features */

/* A packed record, written or read field by field. */
typedef struct {
    uint8_t *at;
} cursor;

static void put(cursor *c, uint32_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        *c->at++ = (uint8_t)(value >> (8 * i));
}

static uint32_t get(cursor *c, unsigned bytes)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)*c->at++ << (8 * i);
    return value;
}

typedef union {
    float value;
    uint32_t bits;
} float_bits;

static void put_float(cursor *c, float value)
{
    const float_bits f = {.value = value};
    put(c, f.bits, 4);
}

static float get_float(cursor *c)
{
    const float_bits f = {.bits = get(c, 4)};
    return f.value;
}

static uint32_t size(const void *start, const void *end)
{
    return (uint32_t)((uintptr_t)end - (uintptr_t)start);
}

static uint16_t length_to(const cursor *c)
{
    return (uint16_t)(c->at - returned);
}

static uint64_t started;

static void start_clock(void)
{
    started = port_ticks();
}

static uint64_t stop_clock(void)
{
    return port_ticks() - started;
}

OUT_OF_LINE void info(frame_reply *reply)
{
    static const char text[] = ENTROPI_CORE ", " __VERSION__;
    entropi_info i = {0};
    start_clock();
    reply->status = (int8_t)entropi_describe(image_start, size(image_start, image_end), &i);
    reply->ticks = stop_clock();
    cursor c = {returned};
    put(&c, i.features, 4);
    put(&c, i.channels, 2);
    put(&c, i.height, 2);
    put(&c, i.width, 2);
    put(&c, i.layers, 2);
    put_float(&c, i.input_scale);
    put(&c, (uint8_t)i.input_zero_point, 1);
    put(&c, i.stored_weights, 4);
    put(&c, i.macs, 4);
    put(&c, sizeof(entropi), 4);
    put(&c, size(arena_start, arena_end), 4);
    put(&c, size(frame_buffer, frame_end), 4);
    put(&c, startup_stack_bytes(), 4);
    for (const uint8_t *crc = image_end - 4; crc < image_end; crc++)
        put(&c, *crc, 1);
    for (const char *t = text; *t && c.at < returned + sizeof returned; t++)
        *c.at++ = (uint8_t)*t;
    reply->length = length_to(&c);
}

OUT_OF_LINE void open(uint16_t length, frame_reply *reply)
{
    if (length != 38) {
        reply->status = ENTROPI_E_ARGUMENT;
        return;
    }
    cursor c = {frame_buffer};
    entropi_head_config head;
    head.classes = (uint16_t)get(&c, 2);
    head.batch = (uint16_t)get(&c, 2);
    head.bytes_per_parameter = (uint16_t)get(&c, 2);
    head.new_classes = (uint16_t)get(&c, 2);
    head.replay = (uint16_t)get(&c, 2);
    head.seed = get(&c, 4);
    head.steps = get(&c, 4);
    head.learning_rate = get_float(&c);
    head.momentum = get_float(&c);
    head.weight_decay = get_float(&c);
    head.learning_rate_decay = get_float(&c);
    const uint32_t asked = get(&c, 4), capacity = size(arena_start, arena_end);
    entropi_need n = {0};
    start_clock();
    reply->status = (int8_t)entropi_open(&encoder, image_start, size(image_start, image_end), &head, arena_start,
                                         asked < capacity ? asked : capacity, &n);
    reply->ticks = stop_clock();
    is_open = reply->status == ENTROPI_OK;
    c.at = returned;
    const uint32_t parts[] = {n.weights, n.momentum, n.gradient, n.batch, n.replay,
                              n.encoder, n.learning, n.total,    n.given, n.missing};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        put(&c, parts[i], 4);
    reply->length = length_to(&c);
}

OUT_OF_LINE void encode(uint16_t length, frame_reply *reply)
{
    const uint32_t features = size(feature_buffer, feature_end);
    start_clock();
    reply->status =
        (int8_t)entropi_encode(&encoder, (const int8_t *)frame_buffer, length, (int8_t *)feature_buffer, features);
    reply->ticks = stop_clock();
    reply->data = feature_buffer;
    reply->length = reply->status ? 0 : (uint16_t)features;
}

/* What COMMAND_LAYERS writes down while the encoder runs. */
typedef struct {
    uint32_t first;
    uint64_t started;
    cursor to;
} record;

static void observe(void *context, const entropi_activation *a)
{
    record *r = context;
    const uint64_t ticks = port_ticks() - r->started;
    if (a->layer >= r->first && length_to(&r->to) + 12u <= sizeof returned) {
        uint32_t crc = 0;
        for (uint32_t c = 0; c < a->channels; c++)
            for (uint32_t y = 0; y < a->height; y++)
                crc = entropi_crc32(crc, a->values + c * a->plane + y * a->pitch, a->width);
        put(&r->to, crc, 4);
        put(&r->to, (uint32_t)ticks, 4);
        put(&r->to, (uint32_t)(ticks >> 32), 4);
    }
    r->started = port_ticks();
}

OUT_OF_LINE void layers(uint16_t length, frame_reply *reply)
{
    if (length < 2)
        return;
    cursor c = {frame_buffer};
    record r = {.first = get(&c, 2), .to = {returned}};
    start_clock();
    r.started = started;
    reply->status = (int8_t)entropi_encode_observed(&encoder, (const int8_t *)c.at, length - 2u,
                                                    (int8_t *)feature_buffer, size(feature_buffer, feature_end),
                                                    observe, &r);
    reply->ticks = stop_clock();
    reply->length = length_to(&r.to);
    if (!reply->status && !reply->length)
        reply->status = ENTROPI_E_ARGUMENT;
}

OUT_OF_LINE void predict(uint16_t length, frame_reply *reply)
{
    uint16_t label = 0;
    float score = 0;
    start_clock();
    reply->status = (int8_t)entropi_predict(&encoder, (const int8_t *)frame_buffer, length, &label, &score);
    reply->ticks = stop_clock();
    cursor c = {returned};
    put(&c, label, 2);
    put_float(&c, score);
    reply->length = length_to(&c);
}

OUT_OF_LINE void learn(uint16_t length, frame_reply *reply)
{
    if (length < 2) {
        reply->status = ENTROPI_E_ARGUMENT;
        return;
    }
    cursor c = {frame_buffer};
    const uint16_t label = (uint16_t)get(&c, 2);
    float loss = 0;
    start_clock();
    reply->status = (int8_t)entropi_learn(&encoder, (const int8_t *)c.at, length - 2u, label, &loss);
    reply->ticks = stop_clock();
    c.at = returned;
    put_float(&c, loss);
    reply->length = length_to(&c);
}

OUT_OF_LINE void head(uint16_t length, frame_reply *reply)
{
    float parameters[sizeof returned / sizeof(float)];
    cursor c = {frame_buffer};
    const uint32_t first = get(&c, 4), count = get(&c, 2);
    if (length != 6 || count > sizeof parameters / sizeof *parameters)
        return;
    start_clock();
    reply->status = (int8_t)entropi_head(&encoder, first, count, parameters);
    reply->ticks = stop_clock();
    if (reply->status)
        return;
    c.at = returned;
    for (uint32_t i = 0; i < count; i++)
        put_float(&c, parameters[i]);
    reply->length = length_to(&c);
}

/* entropi_save or entropi_restore. */
OUT_OF_LINE void use_store(entropi_status (*function)(entropi *, const entropi_store *), frame_reply *reply)
{
    const entropi_store store = flash_store();
    start_clock();
    reply->status = (int8_t)function(&encoder, &store);
    reply->ticks = stop_clock();
    cursor c = {returned};
    put(&c, store.slot_bytes, 4);
    reply->length = length_to(&c);
}

static void carry_out(const frame *request, frame_reply *reply)
{
    *reply = (frame_reply){.status = ENTROPI_E_ARGUMENT, .data = returned};
    if (request->length > size(frame_buffer, frame_end))
        return;
    if (request->command > COMMAND_OPEN && request->command != COMMAND_STACK && !is_open) {
        reply->status = STATUS_CLOSED;
        return;
    }
    switch (request->command) {
    case COMMAND_INFO:
        info(reply);
        break;
    case COMMAND_OPEN:
        open(request->length, reply);
        break;
    case COMMAND_ENCODE:
        encode(request->length, reply);
        break;
    case COMMAND_PREDICT:
        predict(request->length, reply);
        break;
    case COMMAND_LEARN:
        learn(request->length, reply);
        break;
    case COMMAND_FLUSH:
        start_clock();
        reply->status = (int8_t)entropi_flush(&encoder);
        reply->ticks = stop_clock();
        break;
    case COMMAND_HEAD:
        head(request->length, reply);
        break;
    case COMMAND_STACK: {
        cursor c = {returned};
        put(&c, startup_stack_used(), 4);
        reply->status = ENTROPI_OK;
        reply->length = length_to(&c);
        break;
    }
    case COMMAND_LAYERS:
        layers(request->length, reply);
        break;
    case COMMAND_SAVE:
        use_store(entropi_save, reply);
        break;
    case COMMAND_RESTORE:
        use_store(entropi_restore, reply);
        break;
    }
}

int main(void)
{
    frame request = {0};
    frame_reply reply = {0};
    port_open();
    for (;;) {
        const frame_event event = frame_receive(&request, frame_buffer, size(frame_buffer, frame_end));
        if (event == FRAME_ENDED)
            return 0;
        if (event == FRAME_RECEIVED)
            carry_out(&request, &reply);
        frame_send(&request, &reply);
    }
}
