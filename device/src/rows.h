/* How the rows of a convolution are read from the image: the entries of sparse ones, and the scales of all. */
#ifndef ENTROPI_ROWS_H
#define ENTROPI_ROWS_H

#include "internal.h"

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

/* Words of scratch for a sparse kernel: its taps and one more, two words each; two for a weight and for one before the
 * first; and for each block of 16 weights, of one begun and of one more, where its lanes start. */
static inline uint32_t row_words(uint32_t taps, uint32_t entries)
{
    return (taps + 1u) * TAP_WORDS + 2u * (entries + 1u) + entries / 16u + 2u;
}

/* The scales of a layer's rows, read row after row. A row that holds no entries is one byte, its output. */
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

#endif
