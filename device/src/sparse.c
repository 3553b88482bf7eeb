/* Convolutions with sparse weights. A row holds the weights of one output channel; it is decoded once an image, into a
 * list. A tile of four output positions keeps its sums in registers while it walks the list once. Cores with DSP
 * instructions multiply and add two inputs at once: of two weights, or, where weights have few bits, of two positions.
 *
 * The input's zero point is folded into the bias, and the input's border holds the zero point. What a window reaches
 * beyond the border counts as the zero point, too. Above and below, the rows of the kernel that lie there are left out,
 * and what they would add goes into the bias. To the left and right, the windows read whatever lies beside the input,
 * and then take back what that has added. */
#include "vectors.h"
#include "rows.h"
#include "windows.h"

#if !ENTROPI_MVE && !ENTROPI_HOST_VECTORS

/* A weight: how far its input lies from a window's corner, and its value, in the lower 16 bits. Where steps take two
 * weights at once, the upper bits of the first are the value of the second. */
typedef struct {
    uint32_t offset;
    int32_t value;
} weight;

/* One of the kernel's positions. */
typedef struct {
    uint32_t behind; /* from a window's corner to the tap's input behind the last channel */
    uint32_t start;  /* where the row's first weight of the tap, or of a later tap, lies: 32 bits of its address */
} tap;

/* Weights of one output channel, or of some rows of its kernel. */
typedef struct {
    weight *row;        /* the first one of all rows; there is room for one more before it */
    weight *from, *end; /* those that are added, after one of value 0 where steps want an even number */
    uint32_t entry;     /* where steps are entered */
    int32_t start;      /* what a sum is before them */
    uint32_t *starts;   /* lanes: of each block; behind the weights of all rows */
    usual_scale usual;
    row_scale scale;
    const tap *taps; /* and one behind the last */
    uint8_t rows, columns;
    int8_t is_usual; /* outputs are usual_output of this scale */
    int8_t is_plain; /* and all windows inside the border at the sides */
} channel;

typedef struct geometry geometry;

/* Tiles of output positions in neighbouring rows and columns. */
typedef struct {
    uint32_t from, to;          /* where the first window and the first output lie behind the geometry's */
    int32_t next_from, next_to; /* from behind one line of tiles to the next one */
    uint16_t lines, width;      /* of tiles, of positions */
    uint16_t end;               /* the column behind the last */
} area;

/* Compute an area of whole tiles. */
typedef void run_tiles(const geometry *g, const channel *k, const area *a);

/* Areas that together are some rows of output positions. */
enum { MOST_PARTS = 3 };
typedef struct {
    uint32_t count;
    run_tiles *run[MOST_PARTS];
    area areas[MOST_PARTS];
} parts;

/* How a tile's sums are made. */
typedef enum { BY_WEIGHTS, BY_PAIRS, IN_LANES } way;
enum { LANE_BITS = 5 }; /* the most of a value for lanes */

struct geometry {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch, height, width; /* strides in input bytes, pitch of the output */
    int32_t input_zero_point;
    range outputs;
    axis down, across;
    run_tiles *wide;
    uint32_t second;       /* from the input of a tile's first position to that of its third */
    uint8_t rows, columns; /* of a wide tile, 4 positions or a single one */
    uint8_t way;           /* a `way`; in lanes, inputs are moved by 128 and have no sign */
    int8_t is_inside;      /* no window reaches beyond the border at the left or right */
    parts whole;           /* the rows all of whose windows have every row of the kernel */
};

static inline int32_t value_of(const weight *w) { return (int16_t)w->value; }

static inline int32_t input_at(const geometry *g, const int8_t *p)
{
    return g->way == IN_LANES ? (uint8_t)*p - 128 : *p;
}

/* The row's first weight of a tap. */
static inline weight *first_of(const channel *k, const tap *t)
{
    return k->row + (t->start - (uint32_t)(uintptr_t)k->row) / (uint32_t)sizeof(weight);
}

/* What the columns from..end - 1 of the kernel have added to a window's sum, more than the zero point would. */
static int32_t added_by(const geometry *g, const channel *k, const int8_t *corner, uint32_t from, uint32_t end)
{
    int32_t sum = 0;
    const tap *t = k->taps;
    for (uint32_t ky = k->rows; from != end && ky--; t += k->columns) {
        const weight *const last = first_of(k, t + end);
        for (const weight *w = first_of(k, t + from); w != last; w++)
            sum += value_of(w) * (input_at(g, corner + w->offset) - g->input_zero_point);
    }
    return sum;
}

/* Scale the sums of a tile, whose first position is in column x, in any case. */
NOT_INLINED void finish_tile(const geometry *g, const channel *k, const int8_t *corner, uint32_t x, uint32_t rows,
                             uint32_t columns, int32_t *sums, int8_t *to)
{
    for (uint32_t i = 0; i < columns; i++) {
        if (are_inside(&g->across, x + i, 1))
            continue;
        const span s = taps_inside(&g->across, x + i);
        const int8_t *from = corner + i * g->stride_x;
        for (uint32_t row = 0; row < rows; row++, from += g->stride_y) {
            sums[row * columns + i] -= added_by(g, k, from, 0, s.from);
            sums[row * columns + i] -= added_by(g, k, from, s.end, k->columns);
        }
    }
    for (uint32_t row = 0; row < rows; row++, sums += columns, to += g->pitch)
        put(&k->scale, &g->outputs, sums, columns, to);
}

/* Steps in assembly are unrolled, since compilers spill where they unroll them, and the first of them is entered so that
 * the rest of the list is a multiple of them. Registers are named, since not every compiler finds them for so many
 * operands; r7 may point to the frame. */
#if ENTROPI_THUMB == 2
#define PRODUCT(x, sum)                                                                                                \
    "ldrsb r6, [%[" x "], r4]\n"                                                                                       \
    "mla %[" sum "], r6, r5, %[" sum "]\n"
#define WEIGHT_STEP "ldmia %[p]!, {r4, r5}\n" PRODUCT("x0", "s0") PRODUCT("x1", "s1") PRODUCT("x2", "s2") PRODUCT("x3", "s3")
#define ENTER_FOUR(entry)                                                                                              \
    "tbb [pc, " entry "]\n"                                                                                            \
    "0: .byte (1f - 0b) / 2, (4f - 0b) / 2, (3f - 0b) / 2, (2f - 0b) / 2\n"

static inline void add_by_weights(const channel *k, const int8_t *const *x, int32_t *s)
{
    register const weight *p __asm__("r0") = k->from, *end __asm__("r1") = k->end;
    register const int8_t *x0 __asm__("r2") = x[0], *x1 __asm__("r3") = x[1], *x2 __asm__("r12") = x[2];
    register const int8_t *x3 __asm__("lr") = x[3];
    register uint32_t entry __asm__("r4") = k->entry;
    register int32_t s0 __asm__("r8") = s[0], s1 __asm__("r9") = s[1], s2 __asm__("r10") = s[2];
    register int32_t s3 __asm__("r11") = s[3];
    __asm__ volatile(ENTER_FOUR("r4") "1:" WEIGHT_STEP "2:" WEIGHT_STEP "3:" WEIGHT_STEP "4:" WEIGHT_STEP
                     "cmp %[p], %[end]\n"
                     "bne 1b\n"
                     : [p] "+r"(p), "+r"(entry), [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3)
                     : [end] "r"(end), [x0] "r"(x0), [x1] "r"(x1), [x2] "r"(x2), [x3] "r"(x3)
                     : "r5", "r6", "cc", "memory");
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
}

#elif ENTROPI_THUMB == 1

#define PRODUCT(x, sum)                                                                                                \
    "ldrsb r7, [%[" x "], r5]\n"                                                                                       \
    "muls r7, r6, r7\n"                                                                                                \
    "add %[" sum "], r7\n"
#define WEIGHT_STEP "ldmia %[p]!, {r5, r6}\n" PRODUCT("x0", "s0") PRODUCT("x1", "s1") PRODUCT("x2", "s2") PRODUCT("x3", "s3")
enum { STEP_BYTES = 26 };

static inline void add_by_weights(const channel *k, const int8_t *const *x, int32_t *s)
{
    register const int8_t *x0 __asm__("r0") = x[0], *x1 __asm__("r1") = x[1], *x2 __asm__("r2") = x[2];
    register const int8_t *x3 __asm__("r3") = x[3];
    register const weight *p __asm__("r4") = k->from, *end __asm__("r12") = k->end;
    register uint32_t entry __asm__("r5") = k->entry;
    register int32_t s0 __asm__("r8") = s[0], s1 __asm__("r9") = s[1], s2 __asm__("r10") = s[2];
    register int32_t s3 __asm__("r11") = s[3];
    __asm__ volatile(".syntax unified\n"
                     "mov lr, r7\n"
                     "add pc, r5\n"
                     "nop\n"
                     "1:" WEIGHT_STEP WEIGHT_STEP WEIGHT_STEP WEIGHT_STEP
                     "cmp %[p], %[end]\n"
                     "bne 1b\n"
                     "mov r7, lr\n"
                     : [p] "+l"(p), "+l"(entry), [s0] "+h"(s0), [s1] "+h"(s1), [s2] "+h"(s2), [s3] "+h"(s3)
                     : [end] "h"(end), [x0] "l"(x0), [x1] "l"(x1), [x2] "l"(x2), [x3] "l"(x3)
                     : "r6", "lr", "cc", "memory");
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
}

#else

static inline void add_by_weights(const channel *k, const int8_t *const *x, int32_t *s)
{
    for (const weight *w = k->from; w != k->end; w++)
        for (uint32_t i = 0; i < 4; i++)
            s[i] += w->value * x[i][w->offset];
}

#endif

#if ENTROPI_DSP

/* A register holds two neighbouring inputs for the first weight, and above them two for the second; r4 the values. */
#define ADD_NEIGHBOURS(inputs, sum, next)                                                                              \
    "sxtb16 r6, " inputs "\n"                                                                                          \
    "sxtb16 " inputs ", " inputs ", ror #8\n"                                                                          \
    "smlad %[" sum "], r6, r4, %[" sum "]\n"                                                                           \
    "smlad %[" next "], " inputs ", r4, %[" next "]\n"

#define PAIR_STEP                                                                                                      \
    "ldmia %[p]!, {r3, r4, r5, r6}\n"                                                                                  \
    "ldr r3, [%[x], r3]\n"                                                                                             \
    "ldr r5, [%[x], r5]\n"                                                                                             \
    "pkhbt r12, r3, r5, lsl #16\n"                                                                                    \
    "pkhtb r5, r5, r3, asr #16\n" ADD_NEIGHBOURS("r12", "s0", "s1") ADD_NEIGHBOURS("r5", "s2", "s3")

/* Add pairs of weights. */
static inline void add_pairs(const channel *k, const int8_t *at, int32_t *s)
{
    const weight *const from = k->from, *const last = k->end;
    register const weight *p __asm__("r0") = from, *end __asm__("r1") = last;
    register const int8_t *x __asm__("r2") = at;
    register uint32_t entry __asm__("r3") = k->entry;
    register int32_t s0 __asm__("r8") = s[0], s1 __asm__("r9") = s[1], s2 __asm__("r10") = s[2];
    register int32_t s3 __asm__("r11") = s[3];
    __asm__ volatile(ENTER_FOUR("r3") "1:" PAIR_STEP "2:" PAIR_STEP "3:" PAIR_STEP "4:" PAIR_STEP "cmp %[p], %[end]\n"
                     "bne 1b\n"
                     : [p] "+r"(p), "+r"(entry), [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3)
                     : [end] "r"(end), [x] "r"(x)
                     : "r4", "r5", "r6", "r12", "cc", "memory");
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
}

/* A register holds two sums of 16 bits, each above LANE_START, of products with inputs without sign. `odd` has
 * those of positions 1 and 3. `all` adds the products with whole words, which are 256 times those of `odd` more than the
 * sums of positions 0 and 2. A block of weights cannot leave 16 bits; behind it, its lanes go to the sums. */
enum { LANE_WEIGHTS = 16, LANE_START = INT16_MAX, WEIGHT_WORDS = sizeof(weight) / sizeof(int32_t) };

#define LANES_OF_WEIGHT(input, value)                                                                                  \
    "ldr " input ", [%[x], " input "]\n"                                                                               \
    "mla %[all], " input ", " value ", %[all]\n"                                                                       \
    "uxtb16 " input ", " input ", ror #8\n"                                                                            \
    "mla %[odd], " input ", " value ", %[odd]\n"
#define LANE_STEP "ldmia %[p]!, {r3, r4, r5, r6}\n" LANES_OF_WEIGHT("r3", "r4") LANES_OF_WEIGHT("r5", "r6")
#define BEGIN_BLOCK                                                                                                    \
    "ldr %[odd], [%[starts]], #4\n"                                                                                    \
    "adds %[all], %[odd], %[odd], lsl #8\n"
#define FINISH_BLOCK                                                                                                   \
    "sub %[all], %[all], %[odd], lsl #8\n"                                                                             \
    "uxtah %[s0], %[s0], %[all]\n"                                                                                     \
    "uxtah %[s1], %[s1], %[odd]\n"                                                                                     \
    "add %[s2], %[s2], %[all], lsr #16\n"                                                                              \
    "add %[s3], %[s3], %[odd], lsr #16\n"

static inline void add_lanes(const channel *k, const int8_t *at, int32_t *s)
{
    const weight *const from = k->from;
    const uint32_t *const first = k->starts;
    register const weight *p __asm__("r0") = from;
    register const int8_t *x __asm__("r2") = at;
    register uint32_t entry __asm__("r3") = k->entry;
    register const uint32_t *starts __asm__("lr") = first;
    register int32_t s0 __asm__("r8") = s[0], s1 __asm__("r9") = s[1], s2 __asm__("r10") = s[2];
    register int32_t s3 __asm__("r11") = s[3];
    register uint32_t odd __asm__("r1"), all __asm__("r12");
    __asm__ volatile(BEGIN_BLOCK "tbb [pc, r3]\n"
                     "0: .byte (1f - 0b) / 2, (8f - 0b) / 2, (7f - 0b) / 2, (6f - 0b) / 2\n"
                     ".byte (5f - 0b) / 2, (4f - 0b) / 2, (3f - 0b) / 2, (2f - 0b) / 2\n"
                     "1:" LANE_STEP "2:" LANE_STEP "3:" LANE_STEP "4:" LANE_STEP "5:" LANE_STEP "6:" LANE_STEP
                     "7:" LANE_STEP "8:" LANE_STEP FINISH_BLOCK BEGIN_BLOCK "bne 1b\n"
                     : [p] "+r"(p), "+r"(entry), [starts] "+r"(starts), [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2),
                       [s3] "+r"(s3), [odd] "=&r"(odd), [all] "=&r"(all)
                     : [x] "r"(x)
                     : "r4", "r5", "r6", "cc", "memory");
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
}

/* What the lanes of each block begin with, so that inputs count from 0 again, then 0, which none of them is. */
static void start_lanes(channel *k)
{
    uint32_t *start = k->starts;
    const int32_t *value = &k->from->value, *const end = &k->end->value;
    const int32_t *block = value + ((uint32_t)(k->end - k->from - 1) % LANE_WEIGHTS + 1u) * WEIGHT_WORDS;
    for (;; block += LANE_WEIGHTS * WEIGHT_WORDS) {
        int32_t sum = 0;
        while (value != block) {
            sum += *value, value += WEIGHT_WORDS;
            OWN_REGISTER(value)
            sum += *value, value += WEIGHT_WORDS;
        }
        *start++ = (uint32_t)(LANE_START - 128 * sum) * 0x10001u;
        if (block == end)
            break;
    }
    *start = 0;
    k->start -= (int32_t)(start - k->starts) * LANE_START;
}

#endif

/* Make a channel's weights ready for tiles. */
static void prepare(const geometry *g, channel *k)
{
    k->start = k->scale.bias;
    k->entry = (uint32_t)(k->end - k->from);
    if (ENTROPI_DSP && g->way != BY_WEIGHTS) {
        if (k->entry % 2u) {
            k->from--;
            *k->from = (weight){k->from[1].offset, 0};
        }
        k->entry = (k->entry + 1u) / 2u;
    }
#if ENTROPI_DSP
    if (g->way == IN_LANES) {
        start_lanes(k);
        k->entry %= 8u;
        return;
    }
    if (g->way == BY_PAIRS)
        for (weight *w = k->from; w != k->end; w += 2)
            w->value = (int32_t)join_lower((uint32_t)w[0].value, (uint32_t)w[1].value);
#endif
#if ENTROPI_THUMB == 1
    k->entry = (0u - k->entry) % 4u * STEP_BYTES;
#else
    k->entry %= 4u;
#endif
}

/* Add the products of a channel's weights to a tile's sums, s[0] to s[3]; x is the corner of its first window. */
SPECIALISE void add_weights(const geometry *g, const channel *k, const int8_t *x, way how, int32_t *s)
{
#if ENTROPI_DSP
    if (how == IN_LANES)
        add_lanes(k, x, s);
    else if (how == BY_PAIRS)
        add_pairs(k, x, s);
#endif
    if (how == BY_WEIGHTS) {
        const int8_t *const third = x + g->second, *const corners[4] = {x, x + g->stride_x, third, third + g->stride_x};
        add_by_weights(k, corners, s);
    }
}

/* Tiles of four positions. */
SPECIALISE void tiles(const geometry *g, const channel *k, const area *a, way how, uint32_t columns, uint32_t stride)
{
    const uint32_t rest = columns == 2 ? g->pitch : 2, across = columns * stride;
    const int8_t *x = g->input + a->from;
    int8_t *to = g->output + a->to;
    for (uint32_t lines = a->lines;;) {
        int8_t *const last = to + a->width;
        do {
            const int32_t start = k->start;
            int32_t s[4] = {start, start, start, start};
            add_weights(g, k, x, how, s);
            if (k->is_plain || (k->is_usual && are_inside(&g->across, a->end - (uint32_t)(last - to), columns))) {
                const usual_scale usual = k->usual;
                int8_t *const others = to + rest;
                to[0] = usual_output(s[0], &usual);
                to[1] = usual_output(s[1], &usual);
                others[0] = usual_output(s[2], &usual);
                others[1] = usual_output(s[3], &usual);
            } else {
                int32_t sums[4] = {s[0], s[1], s[2], s[3]};
                finish_tile(g, k, x, a->end - (uint32_t)(last - to), g->rows, columns, sums, to);
            }
            to += columns, x += across;
        } while (to != last);
        if (!--lines)
            return;
        x += a->next_from, to += a->next_to;
    }
}

#define TILES(name, how, columns, stride)                                                                              \
    static void name(const geometry *g, const channel *k, const area *a)                                               \
    {                                                                                                                  \
        tiles(g, k, a, how, columns, stride);                                                                          \
    }
#if ENTROPI_DSP
TILES(tiles_in_lanes, IN_LANES, 4, 1)
TILES(tiles_by_pairs, BY_PAIRS, 4, 1)
#endif
TILES(tiles_by_weights, BY_WEIGHTS, g->columns, g->stride_x)

/* Single positions. */
static void positions(const geometry *g, const channel *k, const area *a)
{
    const int8_t *x = g->input + a->from;
    int8_t *to = g->output + a->to;
    for (uint32_t lines = a->lines; lines; lines--, x += a->next_from, to += a->next_to)
        for (int8_t *const last = to + a->width; to != last; to++, x += g->stride_x) {
            int32_t sum = k->scale.bias;
            for (const weight *w = k->from; w != k->end; w++)
                sum += value_of(w) * input_at(g, x + w->offset);
            finish_tile(g, k, x, a->end - (uint32_t)(last - to), 1, 1, &sum, to);
        }
}

/* The largest tile that the output's size allows. */
static void choose_tile(geometry *g, uint32_t value_bits)
{
    const uint32_t stride = g->stride_x, wide = g->width >= 4;
    g->wide = positions;
    g->rows = g->columns = 1;
    if (g->width < 2 || (!wide && g->height < 2))
        return;
    g->wide = tiles_by_weights;
    g->columns = wide ? 4 : 2;
    g->rows = wide ? 1 : 2;
    g->second = wide ? 2 * stride : g->stride_y;
#if ENTROPI_DSP
    if (wide && stride == 1) {
        g->way = value_bits <= LANE_BITS ? IN_LANES : BY_PAIRS;
        g->wide = value_bits <= LANE_BITS ? tiles_in_lanes : tiles_by_pairs;
    }
#else
    (void)value_bits;
#endif
}

/* One of the parts of output rows y..end - 1: wide tiles, and single positions at the right and below. NULL if empty. */
static run_tiles *part(const geometry *g, uint32_t number, uint32_t y, uint32_t end, area *a)
{
    const uint32_t y_whole = end - (end - y) % g->rows, x_whole = g->width - g->width % g->columns;
    const uint32_t x = number == 1 ? x_whole : 0, x_end = number == 0 ? x_whole : g->width;
    const uint32_t rows = number == 0 ? g->rows : 1;
    if (number == 2)
        y = y_whole;
    else
        end = y_whole;
    if (y == end || x == x_end)
        return NULL;
    *a = (area){
        .from = y * g->stride_y + x * g->stride_x,
        .to = y * g->pitch + x,
        .next_from = (int32_t)(rows * g->stride_y) - (int32_t)((x_end - x) * g->stride_x),
        .next_to = (int32_t)(rows * g->pitch - (x_end - x)),
        .lines = (uint16_t)((end - y) / rows),
        .width = (uint16_t)(x_end - x),
        .end = (uint16_t)x_end,
    };
    return number == 0 ? g->wide : positions;
}

static void run_parts(const geometry *g, const channel *k, const parts *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        p->run[i](g, k, &p->areas[i]);
}

/* The sum of the weights from..end - 1. */
static int32_t weights_between(const weight *from, const weight *end)
{
    int32_t sum = 0;
    for (; from != end; from++)
        sum += value_of(from);
    return sum;
}

/* Output row y, without the rows of the kernel that lie above or below the input. */
static void run_cut_row(const geometry *g, const channel *k, uint32_t y)
{
    const span s = taps_inside(&g->down, y);
    channel cut = *k;
    cut.taps = k->taps + s.from * k->columns;
    cut.rows = (uint8_t)(s.end - s.from);
    cut.from = first_of(k, cut.taps);
    cut.end = first_of(k, cut.taps + cut.rows * k->columns);
    cut.scale.bias += g->input_zero_point * (weights_between(k->row, cut.from) +
                                             weights_between(cut.end, first_of(k, k->taps + k->rows * k->columns)));
    if (cut.from == cut.end) {
        int8_t *const to = g->output + y * g->pitch;
        put(&cut.scale, &g->outputs, &cut.scale.bias, 1, to);
        for (uint32_t x = 1; x < g->width; x++)
            to[x] = to[0];
        return;
    }
    weight *const before = cut.from - 1; /* has the value 0 for a while */
    const weight kept = *before;
    prepare(g, &cut);
    for (uint32_t i = 0; i < MOST_PARTS; i++) {
        area a;
        run_tiles *const run = part(g, i, y, y + 1, &a);
        if (run)
            run(g, &cut, &a);
    }
    *before = kept;
}

/* Every output position of a channel. */
static void run_channel(const geometry *g, const channel *k)
{
    run_parts(g, k, &g->whole);
    for (uint32_t y = 0; y < g->down.whole_from; y++)
        run_cut_row(g, k, y);
    for (uint32_t y = g->down.whole_end; y < g->height; y++)
        run_cut_row(g, k, y);
}

/* A row that is being decoded. */
typedef struct {
    tap *t, *last; /* the next tap, and behind the last one */
    uint32_t behind, channels;
} tap_reader;

/* Enter the tap of the entry that has been read ahead: from the tap's last channel backwards, its channel is then below
 * zero. 0 where the row ends before it. */
SPECIALISE int enter_tap(tap_reader *taps, entry_reader *r, const weight *start)
{
    tap *t = taps->t;
    do {
        t->start = (uint32_t)(uintptr_t)start;
        if (t == taps->last)
            return 0;
        t++;
        r->next -= taps->channels;
    } while ((int32_t)r->next >= 0);
    taps->t = t;
    taps->behind = t[-1].behind;
    return 1;
}

/* Decode the reader's next row, which holds entries: kernel row after kernel row, kernel column, input channel. Returns
 * the end of the weights. */
SPECIALISE weight *decode_row(entry_reader *reader, int is_rice, tap_reader taps, uint32_t plane, weight *to)
{
    entry_reader r = *reader;
    while (enter_tap(&taps, &r, to))
        do {
            to->offset = taps.behind + r.next * plane;
            to->value = r.value;
            to++;
            read_entry(&r, is_rice);
        } while ((int32_t)r.next < 0);
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return to;
}

NOT_INLINED weight *decode_pairs(entry_reader *r, tap_reader taps, uint32_t plane, weight *to)
{
    return decode_row(r, 0, taps, plane, to);
}

NOT_INLINED weight *decode_codes(entry_reader *r, tap_reader taps, uint32_t plane, weight *to)
{
    return decode_row(r, 1, taps, plane, to);
}

static void constant_channel(const geometry *g, int8_t value)
{
    for (uint32_t y = 0; y < g->height; y++)
        for (uint32_t x = 0; x < g->width; x++)
            g->output[y * g->pitch + x] = value;
}

/* The rows of a layer. */
typedef struct {
    uint32_t count, a_group; /* rows */
    uint32_t length;         /* positions of a row */
    uint32_t input_plane, output_plane;
    const uint8_t *weights, *scales;
    tap_reader taps; /* before the first */
} row_list;

/* The sum of the reader's next row, which holds entries, at one output position. */
SPECIALISE int32_t sum_row(entry_reader *reader, int is_rice, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    entry_reader r = *reader;
    int32_t sum = 0;
    while (enter_tap(&taps, &r, NULL))
        do {
            sum += r.value * corner[taps.behind + r.next * plane];
            read_entry(&r, is_rice);
        } while ((int32_t)r.next < 0);
    reader->at = r.at, reader->bit = r.bit, reader->next = r.next, reader->value = r.value;
    return sum;
}

NOT_INLINED int32_t sum_of_pairs(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    return sum_row(r, 0, taps, plane, corner);
}

NOT_INLINED int32_t sum_of_codes(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner)
{
    return sum_row(r, 1, taps, plane, corner);
}

/* How the rows are read. */
typedef struct {
    int is_rice;
    weight *(*decode)(entry_reader *r, tap_reader taps, uint32_t plane, weight *to);
    int32_t (*sum)(entry_reader *r, tap_reader taps, uint32_t plane, const int8_t *corner);
} form;

/* Layers of one output position, inside the border. */
static void run_position(geometry *g, const row_list *rows, const form *f)
{
    const uint32_t length = rows->length, plane = rows->input_plane;
    scale_reader scales = open_scales(rows->scales);
    entry_reader r = open_entries(rows->weights, f->is_rice);
    read_entry(&r, f->is_rice);
    uint32_t group_end = rows->a_group;
    for (uint32_t c = 0; c < rows->count; c++, g->output += rows->output_plane) {
        if (c == group_end) {
            group_end += rows->a_group;
            g->input += rows->taps.channels * plane;
        }
        if (r.next >= length) {
            r.next -= length;
            *g->output = (int8_t)*scales.at++;
            continue;
        }
        const row_scale scale = read_scale(&scales);
        const int32_t sum = scale.bias + f->sum(&r, rows->taps, plane, g->input);
        put(&scale, &g->outputs, &sum, 1, g->output);
    }
}

static void run_map(geometry *g, const row_list *rows, channel *k, const form *f)
{
    scale_reader scales = open_scales(rows->scales);
    entry_reader entries = open_entries(rows->weights, f->is_rice);
    read_entry(&entries, f->is_rice);
    uint32_t group_end = rows->a_group;
    for (uint32_t c = 0; c < rows->count; c++, g->output += rows->output_plane) {
        if (c == group_end) {
            group_end += rows->a_group;
            g->input += rows->taps.channels * rows->input_plane;
        }
        if (entries.next >= rows->length) {
            entries.next -= rows->length;
            constant_channel(g, (int8_t)*scales.at++);
            continue;
        }
        k->from = k->row;
        k->end = f->decode(&entries, rows->taps, rows->input_plane, k->row);
        k->starts = (uint32_t *)k->end;
        k->scale = read_scale(&scales);
        k->is_usual = is_usual(&k->scale, &g->outputs);
        k->is_plain = k->is_usual && g->is_inside;
        if (k->is_usual)
            k->usual = usual_of(&k->scale, &g->outputs);
        prepare(g, k);
        run_channel(g, k);
    }
}

/* Most columns of a map that are split, and how many times more weight bytes x positions than map bytes pay for it. */
enum { MOST_SPLIT = 128, SPLIT_PAYS = 64 };

/* Whether a stride of 2 is made one of 1: the columns of even number in each row of the input lie before the others
 * while the layer runs. A tile's inputs are then neighbours. */
static int is_split(const geometry *g, const layer *l, const tensor *in)
{
    return l->stride_w == 2 && l->groups == 1 && g->is_inside && g->width >= 4 && in->pitch <= MOST_SPLIT &&
           (uint64_t)l->weights_length * g->width * g->height >= (uint64_t)SPLIT_PAYS * in->channels * in->plane;
}

/* Where a column lies then, from the first one, border included. */
static uint32_t split_column(const tensor *in, uint32_t column)
{
    return column / 2u + column % 2u * ((in->pitch + 1u) / 2u);
}

NOT_INLINED void split_columns(geometry *g, const layer *l, const tensor *in, int8_t *row)
{
    int8_t odd[MOST_SPLIT / 2];
    for (const int8_t *const last = row + in->channels * in->plane; row != last;) {
        const int8_t *from = row, *const end = row + in->pitch;
        int8_t *to = row, *waiting = odd;
        while (from != end) {
            *to++ = *from++;
            if (from != end)
                *waiting++ = *from++;
        }
        row = to + in->pitch / 2u;
        for (from = odd; to != row;)
            *to++ = *from++;
    }
    g->input -= in->left - l->pad_left;
    g->stride_x = 1;
}

NOT_INLINED void merge_columns(const tensor *in, int8_t *row)
{
    int8_t odd[MOST_SPLIT / 2];
    const uint32_t pitch = in->pitch;
    for (const int8_t *const last = row + in->channels * in->plane; row != last; row += pitch) {
        const int8_t *from = row + pitch;
        int8_t *to = row + pitch, *waiting = odd + pitch / 2u;
        while (waiting != odd)
            *--waiting = *--from;
        if (pitch & 1u)
            *--to = *--from;
        for (waiting = odd + pitch / 2u; from != row;) {
            *--to = *--waiting;
            *--to = *--from;
        }
    }
}

/* Move values by 128 and take their sign, or the other way. */
NOT_INLINED void flip_signs(int8_t *p, uint32_t count)
{
    int8_t *const end = p + count;
#if ENTROPI_DSP
    UNROLLED(4)
    for (; end - p >= 4; p += 4)
        store_4(p, load_4(p) ^ 0x80808080u);
#endif
    for (; p != end; p++)
        *p = (int8_t)(*p ^ -128);
}

static void run_sparse(const work *w, const form *f)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    geometry g = {
        .input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .output = w->activations + interior(out),
        .stride_y = l->stride_h * in->pitch,
        .stride_x = l->stride_w,
        .pitch = out->pitch,
        .height = out->height,
        .width = out->width,
        .input_zero_point = in->zero_point,
        .outputs = range_of(l, out),
    };
    g.down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom, g.height);
    g.across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right, g.width);
    g.is_inside = are_inside(&g.across, 0, g.width);
    const uint32_t count = (uint32_t)l->kernel_h * l->kernel_w, channels = (uint32_t)in->channels / l->groups;
    const int split = is_split(&g, l, in);
    int8_t *const first_row = w->activations + in->offset;
    if (split)
        split_columns(&g, l, in, first_row);
    tap *const taps = (tap *)(void *)w->scratch;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t x = i % l->kernel_w * l->dilation_w;
        taps[i].behind = i / l->kernel_w * l->dilation_h * in->pitch + channels * in->plane +
                         (split ? split_column(in, in->left - l->pad_left + x) : x);
    }
    const row_list rows = {
        .count = out->channels,
        .a_group = (uint32_t)out->channels / l->groups,
        .length = channels * count,
        .input_plane = in->plane,
        .output_plane = out->plane,
        .weights = w->image + l->weights_at,
        .scales = w->image + l->parameters_at,
        .taps = {.t = taps, .last = taps + count, .channels = channels},
    };
    channel k = {
        .row = (weight *)(void *)(w->scratch + (count + 1u) * TAP_WORDS) + 1,
        .taps = taps,
        .rows = l->kernel_h,
        .columns = l->kernel_w,
    };
    if (g.width == 1 && g.height == 1 && g.is_inside && are_inside(&g.down, 0, 1)) {
        run_position(&g, &rows, f);
        return;
    }
    choose_tile(&g, rows.weights[1]);
    for (uint32_t i = 0; i < MOST_PARTS; i++) {
        parts *const p = &g.whole;
        p->run[p->count] = part(&g, i, g.down.whole_from, g.down.whole_end, &p->areas[p->count]);
        p->count += p->run[p->count] != NULL;
    }
    const uint32_t inputs = in->channels * in->plane, outputs = out->channels * out->plane;
    const int stays = out->offset >= in->offset + inputs || in->offset >= out->offset + outputs;
    if (g.way == IN_LANES)
        flip_signs(first_row, inputs);
    run_map(&g, &rows, &k, f);
    if (g.way == IN_LANES && stays) /* else outputs lie over inputs, which nothing reads any more */
        flip_signs(first_row, inputs);
    if (split)
        merge_columns(in, first_row);
}

void run_pairs(const work *w)
{
    const form pairs = {0, decode_pairs, sum_of_pairs};
    run_sparse(w, &pairs);
}

void run_rice(const work *w)
{
    const form codes = {1, decode_codes, sum_of_codes};
    run_sparse(w, &codes);
}
#endif
