/* Frames over a byte stream. Little-endian, both ways:
 *
 *   sync (2)  command (1)  sequence (1)  length (2)  check (2)  payload (length)  CRC-32 (4)
 *
 * check is the low half of the CRC-32 of command, sequence and length, so that a damaged length is never waited for.
 * The CRC-32 covers command to payload. A reply has the request's command with its top bit set and its sequence; its
 * payload starts with status (int8) and ticks (u64). A frame that arrives damaged is answered with FRAME_DAMAGED. */
#ifndef ENTROPI_PROTOCOL_H
#define ENTROPI_PROTOCOL_H

#include <stdint.h>

enum {
    FRAME_SYNC_0 = 0xE7,
    FRAME_SYNC_1 = 0x4E,
    FRAME_REPLY = 0x80, /* or-ed to the command */
    FRAME_DAMAGED = 0xFF
};

enum { STATUS_CLOSED = 1 }; /* beside entropi_status: the command needs an open head, and since reset there is none */

typedef enum {
    FRAME_RECEIVED, /* a whole frame; where it is longer than the buffer, the payload is lost and length tells so */
    FRAME_REPEATED, /* the last frame once more: its reply got lost, it must not be carried out again */
    FRAME_ENDED     /* no more bytes will come */
} frame_event;

typedef struct {
    uint8_t command, sequence;
    uint16_t length;
    uint32_t crc;
} frame;

typedef struct {
    int8_t status;
    uint64_t ticks;
    const uint8_t *data; /* stays valid until the next reply, as it may be asked for again */
    uint16_t length;
} frame_reply;

/* Wait for the next undamaged frame; last is the one received before and becomes this one. */
frame_event frame_receive(frame *last, uint8_t *payload, uint32_t capacity);

void frame_send(const frame *request, const frame_reply *reply);

#endif
