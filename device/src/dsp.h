/* The DSP instructions of Cortex-M4, M7, M33 and M55 that no C expression stands for in every compiler. */
#ifndef ENTROPI_DSP_H
#define ENTROPI_DSP_H

#include <stdint.h>

#if defined(__GNUC__) && defined(__thumb2__) && defined(__ARM_FEATURE_DSP)
#define ENTROPI_DSP 1

/* The lower half of `low` below that of `high`. */
static inline uint32_t join_lower(uint32_t low, uint32_t high)
{
    uint32_t both;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(low), "r"(high));
    return both;
}

/* The upper half of `low` below that of `high`. */
static inline uint32_t join_upper(uint32_t low, uint32_t high)
{
    uint32_t both;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(both) : "r"(high), "r"(low));
    return both;
}

/* Bytes 0 and 2, as two int16. */
static inline uint32_t even_bytes(uint32_t bytes)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1" : "=r"(halves) : "r"(bytes));
    return halves;
}

/* Bytes 1 and 3, as two int16. */
static inline uint32_t odd_bytes(uint32_t bytes)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(bytes));
    return halves;
}

/* sum + both products of int16 halves */
static inline int32_t multiply_halves(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

#else
#define ENTROPI_DSP 0
#endif

#endif
