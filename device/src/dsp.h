/* What cores multiply with: the DSP instructions of Cortex-M4, M7, M33 and M55 that no C expression stands for in every
 * compiler, and the upper half of a product on all. */
#ifndef ENTROPI_DSP_H
#define ENTROPI_DSP_H

#include <stdint.h>

/* Cores without a long multiply take the same products apart into halves of 16 bits. */
#if !defined(ENTROPI_SHORT_MULTIPLY)
#if defined(__thumb__) && __ARM_ARCH_ISA_THUMB == 1
#define ENTROPI_SHORT_MULTIPLY 1
#else
#define ENTROPI_SHORT_MULTIPLY 0
#endif
#endif

/* The Thumb instructions that assembly may use: those of version 1 or 2, or none, as with ENTROPI_NO_ASSEMBLY. Without
 * optimisation it finds no registers; where code or data may lie anywhere, r9 can be the address of the data; of
 * version 1 gcc keeps registers 8 to 11 to itself where it optimises for size. */
#if !defined(__GNUC__) || !defined(__OPTIMIZE__) || !defined(__thumb__) || defined(ENTROPI_NO_ASSEMBLY)
#define ENTROPI_THUMB 0
#elif defined(__PIC__) || defined(__ARM_RWPI)
#define ENTROPI_THUMB 0
#elif __ARM_ARCH_ISA_THUMB == 1 && defined(__OPTIMIZE_SIZE__) && !defined(__clang__)
#define ENTROPI_THUMB 0
#else
#define ENTROPI_THUMB __ARM_ARCH_ISA_THUMB
#endif

/* Inputs are loaded four at a time from any address, the first one lowest. */
#if ENTROPI_THUMB == 2 && defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_UNALIGNED) && !defined(__ARM_BIG_ENDIAN)
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

/* The larger of each two int8. */
static inline uint32_t larger_bytes(uint32_t a, uint32_t b)
{
    uint32_t larger;
    __asm__("ssub8 %0, %1, %2\n"
            "sel %0, %1, %2"
            : "=&r"(larger)
            : "r"(a), "r"(b)
            : "cc");
    return larger;
}

/* Words of any alignment. */
static inline uint32_t load_4(const int8_t *p)
{
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word;
}

static inline void store_4(int8_t *p, uint32_t word) { __builtin_memcpy(p, &word, sizeof word); }

#else
#define ENTROPI_DSP 0
#endif

/* sum + round(a * b / 2^32) */
static inline int32_t add_high(int32_t sum, int32_t a, int32_t b)
{
#if ENTROPI_DSP && !defined(__clang__) /* which finds it by itself */
    int32_t result;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
#elif ENTROPI_SHORT_MULTIPLY
    /* Halves with a sign, so that none of these sums leaves 32 bits. Nearly every `a` is one half alone. */
    const int32_t a0 = (int16_t)a, b1 = ((b >> 15) + 1) >> 1, b0 = (int16_t)b;
    const int32_t lower = a0 * b1 + (a0 * b0 >> 16) + 0x8000;
    if (a == a0)
        return sum + (lower >> 16);
    const int32_t a1 = ((a >> 15) + 1) >> 1;
    return sum + a1 * b1 + ((a1 * b0 + lower) >> 16);
#else
    return (int32_t)((uint32_t)sum + (uint32_t)(((int64_t)a * b + 0x80000000) >> 32));
#endif
}

#endif
