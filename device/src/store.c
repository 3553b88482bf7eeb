/* The head in a store of two slots. A record is a header, the parameters and, written last, a CRC over both. */
#include "internal.h"

enum { RECORD_MAGIC = 0x44485445, RECORD_VERSION = 1, RECORD_HEADER_BYTES = 20, CHUNK = 64 };

static void store_u32(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

static uint32_t payload_bytes(const entropi *self) { return self->momentum_at; }

/* A record belongs to one image and one format of head. */
static void make_header(const entropi *self, uint32_t sequence, uint8_t header[RECORD_HEADER_BYTES])
{
    store_u32(header, RECORD_MAGIC);
    store_u32(header + 4, RECORD_VERSION | head_format(self) << 8);
    store_u32(header + 8, sequence);
    store_u32(header + 12, load_u32(self->image + self->image_length - CRC_BYTES));
    store_u32(header + 16, payload_bytes(self));
}

static entropi_status record_crc(const entropi *self, const entropi_store *store, uint32_t slot, uint32_t *crc)
{
    uint8_t chunk[CHUNK];
    const uint32_t end = RECORD_HEADER_BYTES + payload_bytes(self);
    *crc = 0;
    for (uint32_t at = 0; at < end;) {
        const uint32_t length = end - at < CHUNK ? end - at : CHUNK;
        if (store->read(store->context, slot, at, chunk, length))
            return ENTROPI_E_STORE;
        *crc = entropi_crc32(*crc, chunk, length);
        at += length;
    }
    return ENTROPI_OK;
}

/* OK and the record's sequence number, or E_EMPTY when the slot holds no whole record of this image and head. */
static entropi_status inspect(const entropi *self, const entropi_store *store, uint32_t slot, uint32_t *sequence)
{
    uint8_t found[RECORD_HEADER_BYTES], expected[RECORD_HEADER_BYTES], tail[CRC_BYTES];
    uint32_t crc;
    if (store->read(store->context, slot, 0, found, sizeof found))
        return ENTROPI_E_STORE;
    *sequence = load_u32(found + 8);
    make_header(self, *sequence, expected);
    for (uint32_t i = 0; i < sizeof found; i++)
        if (found[i] != expected[i])
            return ENTROPI_E_EMPTY;
    if (record_crc(self, store, slot, &crc) ||
        store->read(store->context, slot, RECORD_HEADER_BYTES + payload_bytes(self), tail, sizeof tail))
        return ENTROPI_E_STORE;
    return crc == load_u32(tail) ? ENTROPI_OK : ENTROPI_E_EMPTY;
}

/* The slot with the newest whole record; sequence numbers may wrap. */
static entropi_status newest(const entropi *self, const entropi_store *store, uint32_t *slot, uint32_t *sequence)
{
    uint32_t first, second;
    const entropi_status a = inspect(self, store, 0, &first), b = inspect(self, store, 1, &second);
    if (a == ENTROPI_E_STORE || b == ENTROPI_E_STORE)
        return ENTROPI_E_STORE;
    if (a && b)
        return ENTROPI_E_EMPTY;
    *slot = a ? 1 : b ? 0 : (int32_t)(second - first) > 0;
    *sequence = *slot ? second : first;
    return ENTROPI_OK;
}

static int usable(const entropi *self, const entropi_store *store)
{
    return self && self->image && store && store->erase && store->write && store->read &&
           store->slot_bytes >= RECORD_HEADER_BYTES + payload_bytes(self) + CRC_BYTES;
}

entropi_status entropi_save(entropi *self, const entropi_store *store)
{
    if (!usable(self, store))
        return ENTROPI_E_ARGUMENT;
    uint32_t slot, sequence;
    const entropi_status status = newest(self, store, &slot, &sequence);
    if (status == ENTROPI_E_STORE)
        return status;
    if (status == ENTROPI_E_EMPTY)
        slot = 1, sequence = self->sequence;

    uint8_t header[RECORD_HEADER_BYTES], tail[CRC_BYTES];
    const uint32_t target = 1 - slot, length = payload_bytes(self);
    make_header(self, sequence + 1, header);
    store_u32(tail, entropi_crc32(entropi_crc32(0, header, sizeof header), self->arena, length));
    if (store->erase(store->context, target) || store->write(store->context, target, 0, header, sizeof header) ||
        store->write(store->context, target, RECORD_HEADER_BYTES, self->arena, length) ||
        store->write(store->context, target, RECORD_HEADER_BYTES + length, tail, sizeof tail))
        return ENTROPI_E_STORE;
    self->sequence = sequence + 1;
    return ENTROPI_OK;
}

entropi_status entropi_restore(entropi *self, const entropi_store *store)
{
    if (!usable(self, store))
        return ENTROPI_E_ARGUMENT;
    uint32_t slot, sequence;
    const entropi_status status = newest(self, store, &slot, &sequence);
    if (status)
        return status;
    if (store->read(store->context, slot, RECORD_HEADER_BYTES, self->arena, payload_bytes(self)))
        return ENTROPI_E_STORE;
    for (uint32_t i = self->momentum_at; i < self->working_at; i++)
        self->arena[i] = 0;
    self->pending = 0;
    self->sequence = sequence;
    return ENTROPI_OK;
}
