/* A learned head in a store of two slots. docs/storage.md describes the record, and why a power cut is safe. */
#include "head.h"

enum {
    UNIT = ENTROPI_STORE_UNIT, /* of the header, and of all that is written */
    MAGIC = 0x44485445,        /* "ETHD" */
    VERSION = 2,
    FIRST_HEADER_BYTES = 20, /* version 1 had its CRC right behind the payload */
    SEQUENCE_AT = 8,
    PAYLOAD_BYTES_AT = 16
};

/* Aligned as the arena is. */
typedef union {
    uint64_t alignment;
    uint8_t bytes[UNIT];
} unit;

/* The newest whole record, or why there is none. */
typedef struct {
    entropi_status status;
    uint32_t slot, sequence;
} record;

static void store_u32(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

static uint32_t whole_units(uint32_t bytes) { return (bytes + UNIT - 1) / UNIT * UNIT; }

static uint32_t payload_bytes(const entropi *self) { return self->momentum_at; }

static uint32_t own_crc_at(const entropi *self) { return UNIT + whole_units(payload_bytes(self)); }

static unit erased(void)
{
    unit u;
    for (uint32_t i = 0; i < UNIT; i++)
        u.bytes[i] = 0xFF;
    return u;
}

static int equal(const uint8_t *a, const uint8_t *b, uint32_t length)
{
    uint32_t i = 0;
    while (i < length && a[i] == b[i])
        i++;
    return i == length;
}

static unit make_header(const entropi *self, uint32_t sequence)
{
    unit header = erased();
    store_u32(header.bytes, MAGIC);
    store_u32(header.bytes + 4, VERSION | (uint32_t)UNIT << 16);
    store_u32(header.bytes + SEQUENCE_AT, sequence);
    store_u32(header.bytes + 12, load_u32(self->image + self->image_length - CRC_BYTES));
    store_u32(header.bytes + PAYLOAD_BYTES_AT, payload_bytes(self));
    store_u32(header.bytes + 20, head_format(self));
    return header;
}

/* The payload's last bytes, where they fill no unit, and 0xFF behind them. */
static unit last_unit(const entropi *self)
{
    unit last = erased();
    const uint32_t length = payload_bytes(self), rest = length % UNIT;
    for (uint32_t i = 0; i < rest; i++)
        last.bytes[i] = self->arena[length - rest + i];
    return last;
}

/* CRC of the record that the head in the arena makes with that header. */
static uint32_t head_crc(const entropi *self, const unit *header)
{
    return entropi_crc32(entropi_crc32(0, header->bytes, UNIT), self->arena, payload_bytes(self));
}

/* Whether the CRC that lies at `crc_at` is that of the slot's first `end` bytes. */
static entropi_status check_crc(const entropi_store *store, uint32_t slot, uint32_t end, uint32_t crc_at)
{
    unit chunk;
    uint32_t crc = 0;
    for (uint32_t at = 0, length; at < end; at += length) {
        length = end - at < UNIT ? end - at : UNIT;
        if (store->read(store->context, slot, at, chunk.bytes, length))
            return ENTROPI_E_STORE;
        crc = entropi_crc32(crc, chunk.bytes, length);
    }
    if (store->read(store->context, slot, crc_at, chunk.bytes, CRC_BYTES))
        return ENTROPI_E_STORE;
    return crc == load_u32(chunk.bytes) ? ENTROPI_OK : ENTROPI_E_DAMAGED;
}

/* OK and its sequence number where the slot holds a whole record of this image and head; else what it holds. */
static entropi_status inspect(const entropi *self, const entropi_store *store, uint32_t slot, uint32_t *sequence)
{
    unit header;
    if (store->read(store->context, slot, 0, header.bytes, UNIT))
        return ENTROPI_E_STORE;
    const uint32_t version = load_u16(header.bytes + 4), length = load_u32(header.bytes + PAYLOAD_BYTES_AT);
    if (load_u32(header.bytes) != MAGIC)
        return equal(header.bytes, erased().bytes, UNIT) ? ENTROPI_E_EMPTY : ENTROPI_E_DAMAGED;
    if (length > store->slot_bytes)
        return ENTROPI_E_DAMAGED;
    const uint32_t end = (version == 1 ? FIRST_HEADER_BYTES : UNIT) + length;
    const uint32_t crc_at = version == 1 ? end : whole_units(end);
    if (crc_at > store->slot_bytes - CRC_BYTES)
        return ENTROPI_E_DAMAGED;
    const entropi_status status = check_crc(store, slot, end, crc_at);
    if (status)
        return status;
    if (version != VERSION)
        return ENTROPI_E_VERSION;
    *sequence = load_u32(header.bytes + SEQUENCE_AT);
    return equal(header.bytes, make_header(self, *sequence).bytes, UNIT) ? ENTROPI_OK : ENTROPI_E_FOREIGN;
}

/* Of two reasons for finding nothing the one that says more: E_EMPTY, then E_DAMAGED, then any other. */
static entropi_status reason(entropi_status a, entropi_status b)
{
    if (a == ENTROPI_E_EMPTY || (a == ENTROPI_E_DAMAGED && b != ENTROPI_E_EMPTY))
        return b;
    return a;
}

static record find_newest(const entropi *self, const entropi_store *store)
{
    uint32_t first = 0, second = 0;
    const entropi_status a = inspect(self, store, 0, &first), b = inspect(self, store, 1, &second);
    if (a && b)
        return (record){.status = reason(a, b)};
    /* Sequence numbers may wrap. */
    const uint32_t newer = second - first;
    const int is_second = a || (!b && newer - 1u < INT32_MAX);
    return (record){.slot = (uint32_t)is_second, .sequence = is_second ? second : first};
}

/* Whether the record's payload is the head in the arena. */
static int holds_head(const entropi *self, const entropi_store *store, uint32_t slot)
{
    unit chunk;
    const uint32_t end = payload_bytes(self);
    for (uint32_t at = 0, length; at < end; at += length) {
        length = end - at < UNIT ? end - at : UNIT;
        if (store->read(store->context, slot, UNIT + at, chunk.bytes, length) ||
            !equal(chunk.bytes, self->arena + at, length))
            return 0;
    }
    return 1;
}

static int usable(const entropi *self, const entropi_store *store)
{
    return self && self->image && store && store->erase && store->write && store->read;
}

entropi_status entropi_save(entropi *self, const entropi_store *store)
{
    if (!usable(self, store) || store->slot_bytes < own_crc_at(self) + UNIT)
        return ENTROPI_E_ARGUMENT;
    const record newest = find_newest(self, store);
    const int is_first = newest.status != ENTROPI_OK;
    if (!is_first && holds_head(self, store, newest.slot))
        return ENTROPI_OK;

    const uint32_t slot = is_first ? 0 : 1 - newest.slot, sequence = is_first ? 1 : newest.sequence + 1;
    const uint32_t length = payload_bytes(self), rest = length % UNIT;
    const unit header = make_header(self, sequence), last = last_unit(self);
    unit tail = erased();
    store_u32(tail.bytes, head_crc(self, &header));
    void *const context = store->context;
    if (store->erase(context, slot) || store->write(context, slot, 0, header.bytes, UNIT) ||
        (length > rest && store->write(context, slot, UNIT, self->arena, length - rest)) ||
        (rest && store->write(context, slot, UNIT + length - rest, last.bytes, UNIT)) ||
        store->write(context, slot, own_crc_at(self), tail.bytes, UNIT))
        return ENTROPI_E_STORE;
    uint32_t found;
    return inspect(self, store, slot, &found) || found != sequence ? ENTROPI_E_STORE : ENTROPI_OK;
}

entropi_status entropi_restore(entropi *self, const entropi_store *store)
{
    if (!usable(self, store) || store->slot_bytes < 2 * UNIT)
        return ENTROPI_E_ARGUMENT;
    const record newest = find_newest(self, store);
    if (newest.status)
        return newest.status;
    const unit header = make_header(self, newest.sequence);
    uint8_t crc[CRC_BYTES];
    /* Checked once more in the arena: flash that a power cut left half written may read otherwise each time. */
    const int failed =
        store->read(store->context, newest.slot, UNIT, self->arena, payload_bytes(self)) ||
        store->read(store->context, newest.slot, own_crc_at(self), crc, CRC_BYTES) ||
        load_u32(crc) != head_crc(self, &header);
    if (failed) {
        start_again(self);
        return ENTROPI_E_STORE;
    }
    for (uint32_t i = self->momentum_at; i < self->working_at; i++)
        self->arena[i] = 0;
    self->pending = 0;
    return ENTROPI_OK;
}
