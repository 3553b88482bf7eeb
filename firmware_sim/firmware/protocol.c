#include "protocol.h"

#include "entropi.h"
#include "port.h"

enum { HEADER = 6, SYNC = 2, REPLY_HEADER = 9 };

static void put(uint8_t *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get(const uint8_t *from, unsigned bytes)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)from[i] << (8 * i);
    return value;
}

/* The header after sync: command, sequence, length, check. Returns the CRC so far. */
static uint32_t put_header(uint8_t *header, uint8_t command, uint8_t sequence, uint16_t length)
{
    header[0] = command;
    header[1] = sequence;
    put(header + 2, length, 2);
    const uint32_t crc = entropi_crc32(0, header, 4);
    put(header + 4, crc & 0xFFFFu, 2);
    return crc;
}

static void send_damaged(void)
{
    uint8_t bytes[SYNC + HEADER + 4] = {FRAME_SYNC_0, FRAME_SYNC_1};
    put(bytes + SYNC + HEADER, put_header(bytes + SYNC, FRAME_DAMAGED, 0, 0), 4);
    port_write(bytes, sizeof bytes);
}

/* Slide along the stream until a header stands right behind the two sync bytes. */
static int receive_header(uint8_t *header)
{
    uint8_t sync[2] = {0, 0};
    while (sync[0] != FRAME_SYNC_0 || sync[1] != FRAME_SYNC_1) {
        sync[0] = sync[1];
        if (port_read(sync + 1, 1))
            return -1;
    }
    return port_read(header, HEADER);
}

/* Read length bytes, keep those that fit and go on with the CRC over all of them. */
static int receive_payload(uint8_t *payload, uint32_t capacity, uint32_t length, uint32_t *crc)
{
    uint8_t rest[32];
    uint32_t n = length;
    if (n <= capacity) {
        if (port_read(payload, n))
            return -1;
        *crc = entropi_crc32(*crc, payload, n);
        return 0;
    }
    for (; length; length -= n) {
        n = length < sizeof rest ? length : sizeof rest;
        if (port_read(rest, n))
            return -1;
        *crc = entropi_crc32(*crc, rest, n);
    }
    return 0;
}

frame_event frame_receive(frame *last, uint8_t *payload, uint32_t capacity)
{
    for (;;) {
        uint8_t header[HEADER], trailer[4];
        if (receive_header(header))
            return FRAME_ENDED;
        uint32_t crc = entropi_crc32(0, header, 4);
        if ((crc & 0xFFFFu) != get(header + 4, 2)) {
            send_damaged();
            continue;
        }
        const uint16_t length = (uint16_t)get(header + 2, 2);
        if (receive_payload(payload, capacity, length, &crc) || port_read(trailer, sizeof trailer))
            return FRAME_ENDED;
        if (crc != get(trailer, 4)) {
            send_damaged();
            continue;
        }
        const int repeated = last->command == header[0] && last->sequence == header[1] && last->crc == crc;
        *last = (frame){header[0], header[1], length, crc};
        return repeated ? FRAME_REPEATED : FRAME_RECEIVED;
    }
}

void frame_send(const frame *request, const frame_reply *reply)
{
    uint8_t head[SYNC + HEADER + REPLY_HEADER] = {FRAME_SYNC_0, FRAME_SYNC_1};
    uint8_t trailer[4];
    uint32_t crc = put_header(head + SYNC, request->command | FRAME_REPLY, request->sequence,
                              (uint16_t)(REPLY_HEADER + reply->length));
    head[SYNC + HEADER] = (uint8_t)reply->status;
    put(head + SYNC + HEADER + 1, reply->ticks, 8);
    crc = entropi_crc32(crc, head + SYNC + HEADER, REPLY_HEADER);
    crc = entropi_crc32(crc, reply->data, reply->length);
    put(trailer, crc, 4);
    port_write(head, sizeof head);
    if (reply->length)
        port_write(reply->data, reply->length);
    port_write(trailer, sizeof trailer);
}
