/* Convolutions with sparse weights on a core with vectors. A row of weights is decoded once an image into a list, and a
 * tile of output positions keeps its sums in vector registers while it walks the list once: a load widens inputs, a
 * multiply-accumulate takes them with the weight. Where the positions' inputs are no neighbours, the load gathers them.
 * The last tiles of a map are moved back into it: their outputs are written twice.
 *
 * Windows that reach beyond the border of the input are summed one by one; what lies there counts as the zero point. */
#include "vectors.h"
#include "rows.h"
#include "windows.h"

#if ENTROPI_MVE || ENTROPI_HOST_VECTORS

/* One of the kernel's positions. */
typedef struct {
    uint32_t behind; /* packed: from a window's corner to the tap's input behind the last channel or, where rows are decoded
                      * by positions, to what would be position 0 of the row */
    uint32_t start;  /* the number of the tap's first weight in the list */
} tap;

/* The list holds offset << 8 | value: how far a weight's input lies from the window's corner, and the int8 value. */
typedef struct {
    const uint32_t *first, *end;
    const tap *taps; /* and one behind the last */
    row_scale scale;
    usual_scale usual;
    int is_usual; /* outputs are usual_output of this scale; read on hosts */
} row;

typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch; /* strides in input bytes, pitch of the output */
    uint32_t count, columns;            /* of the kernel: taps, width */
    int32_t input_zero_point;
    range outputs;
    axis down, across;
    int clipped;      /* some window reaches beyond the border */
    int by_positions; /* how rows are decoded */
    uint64_t inverse; /* then, of a tap's channels, times 2^INVERSE_BITS and rounded up: quotients of positions are exact */
} geometry;
enum { INVERSE_BITS = 40 };

static inline uint32_t offset_of(uint32_t w) { return w >> 8; }
static inline int32_t value_of(uint32_t w) { return (int8_t)w; }

/* Compute a tile of whole windows; the first one's corner is x, its output goes to `to`. */
typedef void run_tile(const geometry *g, const row *r, const int8_t *x, int8_t *to);

#if ENTROPI_MVE

/* Inputs of four positions. */
SPECIALISE fours load_fours(const int8_t *x, uint32x4_t offsets, int is_adjacent)
{
    return is_adjacent ? vldrbq_s32(x) : vldrbq_gather_offset_s32(x, offsets);
}

/* `rows` x `columns` positions; a vector holds four neighbours of a row or, in a tile of 2x2, all of them. */
SPECIALISE void tile(const geometry *g, const row *r, const int8_t *x, int8_t *to, uint32_t rows, uint32_t columns,
                     int is_adjacent)
{
    const int is_square = columns < FOUR;
    const uint32_t down = g->stride_y, across = is_adjacent ? 1 : g->stride_x, vectors = rows * columns / FOUR;
    const uint32x4_t number = vidupq_n_u32(0, 1), high = vshrq_n_u32(number, 1);
    const uint32x4_t low = is_square ? vandq_u32(number, vdupq_n_u32(1)) : number;
    uint32x4_t offsets = vmulq_n_u32(low, across);
    if (is_square)
        offsets = vmlaq_n_u32(offsets, high, down);
    fours s0 = vdupq_n_s32(r->scale.bias), s1 = s0, s2 = s0, s3 = s0;
    for (const uint32_t *w = r->first; w != r->end; w++) {
        const int32_t value = value_of(*w);
        const int8_t *a = x + offset_of(*w), *b = a + down;
        s0 = vmlaq_n_s32(s0, load_fours(a, offsets, is_adjacent), value);
        if (vectors == 1)
            continue;
        if (columns == 2 * FOUR) {
            s1 = vmlaq_n_s32(s1, load_fours(a + FOUR * across, offsets, is_adjacent), value);
            s2 = vmlaq_n_s32(s2, load_fours(b, offsets, is_adjacent), value);
            s3 = vmlaq_n_s32(s3, load_fours(b + FOUR * across, offsets, is_adjacent), value);
        } else {
            const int8_t *c = b + down, *d = c + down;
            s1 = vmlaq_n_s32(s1, load_fours(b, offsets, is_adjacent), value);
            s2 = vmlaq_n_s32(s2, load_fours(c, offsets, is_adjacent), value);
            s3 = vmlaq_n_s32(s3, load_fours(d, offsets, is_adjacent), value);
        }
    }
    const fours y0 = outputs_of(s0, &r->scale, &g->outputs);
    if (is_square) {
        vstrbq_scatter_offset_s32(to, vmlaq_n_u32(low, high, g->pitch), y0);
        return;
    }
    vstrbq_s32(to, y0);
    if (vectors == 1)
        return;
    const uint32_t next = columns == FOUR ? g->pitch : FOUR, apart = columns == FOUR ? 2 * g->pitch : g->pitch;
    vstrbq_s32(to + next, outputs_of(s1, &r->scale, &g->outputs));
    vstrbq_s32(to + apart, outputs_of(s2, &r->scale, &g->outputs));
    vstrbq_s32(to + apart + next, outputs_of(s3, &r->scale, &g->outputs));
}

#else

#pragma GCC diagnostic ignored "-Wpsabi" /* no vector is passed between files */
#define VECTOR_OF(type, bytes) type __attribute__((vector_size(bytes)))
typedef VECTOR_OF(int8_t, 4) bytes_4;
typedef VECTOR_OF(int8_t, 16) bytes_16;
typedef VECTOR_OF(int16_t, 32) halves_16;
typedef VECTOR_OF(uint16_t, 32) bits_16;
typedef VECTOR_OF(int32_t, 16) words_4;
typedef VECTOR_OF(int32_t, 64) words_16;
typedef VECTOR_OF(uint16_t, 4) parts_of_2;
typedef VECTOR_OF(uint32_t, 16) parts_of_4;
typedef VECTOR_OF(uint32_t, 32) pairs_of_4;
typedef VECTOR_OF(uint64_t, 16) parts_of_8;
typedef VECTOR_OF(uint64_t, 32) pairs_of_8;

#define LOAD(name, type)                                                                                               \
    static inline type name(const int8_t *p)                                                                           \
    {                                                                                                                  \
        type x;                                                                                                        \
        copy_bytes((int8_t *)&x, p, sizeof x);                                                                         \
        return x;                                                                                                      \
    }
LOAD(load_2, uint16_t)
LOAD(load_4, uint32_t)
LOAD(load_8, uint64_t)

/* Inputs of 2x8 or 4x4 positions whose windows lie 1, 2 or any number of bytes apart. Of two of them, every other byte is
 * taken: the even ones of a load and, so that no load goes beyond the last window, the odd ones of one that ends there. */
SPECIALISE words_16 load_sixteen(const int8_t *x, uint32_t down, uint32_t across, uint32_t columns)
{
    const int8_t *const b = x + down, *const c = b + down, *const d = c + down;
    if (across == 1) {
        if (columns == 8)
            return __builtin_convertvector((bytes_16)(parts_of_8){load_8(x), load_8(b)}, words_16);
        const parts_of_4 rows = {load_4(x), load_4(b), load_4(c), load_4(d)};
        return __builtin_convertvector((bytes_16)rows, words_16);
    }
    if (across == 2) {
        bits_16 up; /* the byte that is wanted, as the upper one */
        if (columns == 8) {
            const bits_16 even = {256, 256, 256, 256, 1, 1, 1, 1, 256, 256, 256, 256, 1, 1, 1, 1};
            up = (bits_16)(pairs_of_8){load_8(x), load_8(x + 7), load_8(b), load_8(b + 7)} * even;
        } else {
            const bits_16 even = {256, 256, 1, 1, 256, 256, 1, 1, 256, 256, 1, 1, 256, 256, 1, 1};
            up = (bits_16)(pairs_of_4){load_4(x), load_4(x + 3), load_4(b), load_4(b + 3),
                                       load_4(c), load_4(c + 3), load_4(d), load_4(d + 3)} * even;
        }
        return __builtin_convertvector((halves_16)up >> 8, words_16);
    }
    words_16 found;
    for (uint32_t i = 0; i < SIXTEEN; i++)
        found[i] = x[i / columns * down + i % columns * across];
    return found;
}

/* Inputs of 1x4 or 2x2 positions. */
SPECIALISE words_4 load_four(const int8_t *x, uint32_t down, uint32_t across, uint32_t columns)
{
    if (across == 1) {
        union {
            uint32_t bits;
            parts_of_2 parts;
            bytes_4 bytes;
        } u;
        if (columns == 4)
            u.bits = load_4(x);
        else
            u.parts = (parts_of_2){load_2(x), load_2(x + down)};
        return __builtin_convertvector(u.bytes, words_4);
    }
    if (columns == 4)
        return (words_4){x[0], x[across], x[2 * across], x[3 * across]};
    return (words_4){x[0], x[across], x[down], x[down + across]};
}

SPECIALISE void put_tile(const geometry *g, const row *r, uint32_t rows, uint32_t columns, const int32_t *sums,
                         int8_t *to)
{
    int8_t outputs[SIXTEEN];
    if (r->is_usual)
        for (uint32_t i = 0; i < rows * columns; i++)
            outputs[i] = usual_output(sums[i], &r->usual);
    else
        put(&r->scale, &g->outputs, sums, rows * columns, outputs);
    for (uint32_t y = 0; y < rows; y++, to += g->pitch)
        copy_bytes(to, outputs + y * columns, columns);
}

SPECIALISE void sum_tile(const geometry *g, const row *r, const int8_t *x, int8_t *to, uint32_t rows, uint32_t columns,
                         uint32_t across)
{
    const uint32_t down = g->stride_y;
    const int32_t bias = r->scale.bias;
    int32_t sums[SIXTEEN];
    if (rows * columns == SIXTEEN) {
        words_16 sum = (words_16){0} + bias;
        for (const uint32_t *w = r->first; w != r->end; w++)
            sum += load_sixteen(x + offset_of(*w), down, across, columns) * value_of(*w);
        copy_bytes((int8_t *)sums, (const int8_t *)&sum, sizeof sum);
    } else {
        words_4 sum = (words_4){0} + bias;
        for (const uint32_t *w = r->first; w != r->end; w++)
            sum += load_four(x + offset_of(*w), down, across, columns) * value_of(*w);
        copy_bytes((int8_t *)sums, (const int8_t *)&sum, sizeof sum);
    }
    put_tile(g, r, rows, columns, sums, to);
}

SPECIALISE void tile(const geometry *g, const row *r, const int8_t *x, int8_t *to, uint32_t rows, uint32_t columns,
                     int is_adjacent)
{
    if (is_adjacent)
        sum_tile(g, r, x, to, rows, columns, 1);
    else if (g->stride_x == 2)
        sum_tile(g, r, x, to, rows, columns, 2);
    else
        sum_tile(g, r, x, to, rows, columns, g->stride_x);
}

#endif

#define TILE(name, rows, columns, is_adjacent)                                                                         \
    static void name(const geometry *g, const row *r, const int8_t *x, int8_t *to)                                     \
    {                                                                                                                  \
        tile(g, r, x, to, rows, columns, is_adjacent);                                                                 \
    }
TILE(tile_2x8, 2, 8, 1)
TILE(tile_4x4, 4, 4, 1)
TILE(tile_1x4, 1, 4, 1)
TILE(gathered_2x8, 2, 8, 0)
TILE(gathered_4x4, 4, 4, 0)
TILE(gathered_1x4, 1, 4, 0)
TILE(gathered_2x2, 2, 2, 0)
#if ENTROPI_HOST_VECTORS
TILE(tile_2x2, 2, 2, 1)
#else
#define tile_2x2 gathered_2x2 /* no load takes neighbours of two rows */
#endif

static void tile_1x1(const geometry *g, const row *r, const int8_t *x, int8_t *to)
{
    int32_t sum = r->scale.bias;
    for (const uint32_t *w = r->first; w != r->end; w++)
        sum += value_of(*w) * x[offset_of(*w)];
    put(&r->scale, &g->outputs, &sum, 1, to);
}

typedef struct {
    uint32_t rows, columns;
    run_tile *run;
} shape;

/* The largest tile that so many whole windows allow. */
static shape largest_tile(uint32_t height, uint32_t width, int is_adjacent)
{
    if (height >= 2 && width >= 8)
        return (shape){2, 8, is_adjacent ? tile_2x8 : gathered_2x8};
    if (height >= 4 && width >= 4)
        return (shape){4, 4, is_adjacent ? tile_4x4 : gathered_4x4};
    if (width >= 4)
        return (shape){1, 4, is_adjacent ? tile_1x4 : gathered_1x4};
    if (height >= 2 && width >= 2)
        return (shape){2, 2, is_adjacent ? tile_2x2 : gathered_2x2};
    return (shape){1, 1, tile_1x1};
}

/* One window, of which only these taps lie inside. */
static void run_clipped(const geometry *g, const row *r, span down, span across, const int8_t *x, int8_t *to)
{
    int32_t sum = r->scale.bias;
    const uint32_t *w = r->first;
    for (uint32_t t = 0; t < g->count; t++) {
        const uint32_t ky = t / g->columns, kx = t % g->columns;
        const int is_inside = ky >= down.from && ky < down.end && kx >= across.from && kx < across.end;
        for (const uint32_t *end = r->first + r->taps[t + 1].start; w != end; w++)
            sum += value_of(*w) * (is_inside ? x[offset_of(*w)] : g->input_zero_point);
    }
    put(&r->scale, &g->outputs, &sum, 1, to);
}

static void run_row(const geometry *g, const row *r, const shape *s)
{
    const axis *down = &g->down, *across = &g->across;
    for (uint32_t y = 0; g->clipped && y < down->windows; y++)
        for (uint32_t x = 0; x < across->windows; x++) {
            if (are_inside(down, y, 1) && are_inside(across, x, 1)) {
                x = across->whole_end - 1u;
                continue;
            }
            run_clipped(g, r, taps_inside(down, y), taps_inside(across, x), g->input + y * g->stride_y + x * g->stride_x,
                        g->output + y * g->pitch + x);
        }
    for (uint32_t y = down->whole_from; y < down->whole_end; y += s->rows) {
        const uint32_t top = y + s->rows > down->whole_end ? down->whole_end - s->rows : y;
        const int8_t *corner = g->input + top * g->stride_y;
        int8_t *to = g->output + top * g->pitch;
        for (uint32_t x = across->whole_from; x < across->whole_end; x += s->columns) {
            const uint32_t left = x + s->columns > across->whole_end ? across->whole_end - s->columns : x;
            s->run(g, r, corner + left * g->stride_x, to + left);
        }
    }
}

/* Decode the reader's next row, of `channels` weights a tap. Returns the list's end. */
SPECIALISE uint32_t *decode_row(entry_reader *reader, int is_rice, const geometry *g, uint32_t channels, uint32_t plane,
                                tap *taps, uint32_t *list)
{
    entry_reader e = *reader;
    uint32_t *to = list;
    for (tap *t = taps, *last = taps + g->count; t != last; t++) {
        t->start = (uint32_t)(to - list);
        e.next -= channels; /* now below zero, from the tap's last channel backwards, while it belongs to the tap */
        for (const uint32_t behind = t->behind; (int32_t)e.next < 0; read_entry(&e, is_rice))
            *to++ = (behind + e.next * plane) | (uint8_t)e.value;
    }
    taps[g->count].start = (uint32_t)(to - list);
    reader->at = e.at, reader->bit = e.bit, reader->next = e.next, reader->value = e.value;
    return to;
}

/* The same without a loop over the taps, which costs more than the weights where a tap has few, nor where taps start. */
SPECIALISE uint32_t *decode_positions(entry_reader *reader, int is_rice, const geometry *g, uint32_t channels,
                                      uint32_t plane, const tap *taps, uint32_t *list)
{
    const uint32_t length = channels * g->count;
    entry_reader e = *reader;
    uint32_t *to = list;
    for (; e.next < length; read_entry(&e, is_rice))
        *to++ = (taps[e.next * g->inverse >> INVERSE_BITS].behind + e.next * plane) | (uint8_t)e.value;
    reader->at = e.at, reader->bit = e.bit, reader->next = e.next - length, reader->value = e.value;
    return to;
}

NOT_INLINED uint32_t *decode_pairs(entry_reader *e, const geometry *g, uint32_t channels, uint32_t plane, tap *taps,
                                   uint32_t *list)
{
    return ENTROPI_HOST_VECTORS && g->by_positions ? decode_positions(e, 0, g, channels, plane, taps, list)
                           : decode_row(e, 0, g, channels, plane, taps, list);
}

NOT_INLINED uint32_t *decode_codes(entry_reader *e, const geometry *g, uint32_t channels, uint32_t plane, tap *taps,
                                   uint32_t *list)
{
    return ENTROPI_HOST_VECTORS && g->by_positions ? decode_positions(e, 1, g, channels, plane, taps, list)
                           : decode_row(e, 1, g, channels, plane, taps, list);
}

/* Layers whose output is one position inside: every weight is needed once, so rows are summed as they are decoded. */
SPECIALISE void sum_rows(const work *w, int is_rice)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const range outputs = range_of(l, out);
    const uint32_t rows_a_group = out->channels / l->groups, channels = (uint32_t)in->channels / l->groups;
    const uint32_t plane = in->plane, group_bytes = channels * plane, length = channels * l->kernel_h * l->kernel_w;
    const int8_t *input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left));
    int8_t *output = w->activations + interior(out);
    scale_reader scales = open_scales(w->image + l->parameters_at);
    entry_reader e = open_entries(w->image + l->weights_at, is_rice);
    read_entry(&e, is_rice);
    for (uint32_t c = 0; c < out->channels; c++, output += out->plane) {
        if (c && c % rows_a_group == 0)
            input += group_bytes;
        if (e.next >= length) {
            e.next -= length;
            *output = (int8_t)*scales.at++;
            continue;
        }
        const row_scale scale = read_scale(&scales);
        int32_t sum = scale.bias;
        for (uint32_t y = 0; y < l->kernel_h; y++)
            for (uint32_t x = 0; x < l->kernel_w; x++) {
                const int8_t *tap = input + y * l->dilation_h * in->pitch + x * l->dilation_w;
                for (; e.next < channels; read_entry(&e, is_rice))
                    sum += e.value * tap[e.next * plane];
                e.next -= channels;
            }
        put(&scale, &outputs, &sum, 1, output);
    }
}

NOT_INLINED void sum_rows_of_pairs(const work *w) { sum_rows(w, 0); }
NOT_INLINED void sum_rows_of_codes(const work *w) { sum_rows(w, 1); }

static void run_sparse(const work *w, int is_rice)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    geometry g = {
        .input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left)),
        .output = w->activations + interior(out),
        .stride_y = l->stride_h * in->pitch,
        .stride_x = l->stride_w,
        .pitch = out->pitch,
        .count = (uint32_t)l->kernel_h * l->kernel_w,
        .columns = l->kernel_w,
        .input_zero_point = in->zero_point,
        .outputs = range_of(l, out),
    };
    g.down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom, out->height);
    g.across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right, out->width);
    g.clipped = !are_inside(&g.down, 0, out->height) || !are_inside(&g.across, 0, out->width);
    g.by_positions = !g.clipped;
    const int is_one = out->height == 1 && out->width == 1 && !g.clipped;
    if (is_one && (!ENTROPI_HOST_VECTORS || g.count == 1)) {
        (is_rice ? sum_rows_of_codes : sum_rows_of_pairs)(w);
        return;
    }
    const shape s = largest_tile(g.down.whole_end - g.down.whole_from, g.across.whole_end - g.across.whole_from,
                                 g.stride_x == 1);
    const uint32_t rows = out->channels, rows_a_group = rows / l->groups, channels = (uint32_t)in->channels / l->groups;
    const uint32_t group_bytes = channels * in->plane, length = channels * g.count;
    tap *const taps = (tap *)(void *)w->scratch;
    uint32_t *const list = w->scratch + (g.count + 1u) * TAP_WORDS;
    for (uint32_t i = 0; i < g.count; i++) {
        const uint32_t corner = i / g.columns * l->dilation_h * in->pitch + i % g.columns * l->dilation_w;
        taps[i].behind = (ENTROPI_HOST_VECTORS && g.by_positions ? corner - i * group_bytes : corner + group_bytes) << 8;
    }
    if (ENTROPI_HOST_VECTORS)
        g.inverse = (((uint64_t)1 << INVERSE_BITS) + channels - 1u) / channels;
    row r = {.first = list, .taps = taps};
    scale_reader scales = open_scales(w->image + l->parameters_at);
    entry_reader entries = open_entries(w->image + l->weights_at, is_rice);
    read_entry(&entries, is_rice);
    for (uint32_t c = 0; c < rows; c++, g.output += out->plane) {
        if (c && c % rows_a_group == 0)
            g.input += group_bytes;
        if (entries.next >= length) {
            entries.next -= length;
            const int8_t value = (int8_t)*scales.at++;
            for (uint32_t y = 0; y < out->height; y++)
                for (uint32_t x = 0; x < out->width; x++)
                    g.output[y * g.pitch + x] = value;
            continue;
        }
        r.end = (is_rice ? decode_codes : decode_pairs)(&entries, &g, channels, in->plane << 8, taps, list);
        r.scale = read_scale(&scales);
        if (ENTROPI_HOST_VECTORS)
            r.is_usual = is_usual(&r.scale, &g.outputs);
        if (ENTROPI_HOST_VECTORS && r.is_usual)
            r.usual = usual_of(&r.scale, &g.outputs);
        run_row(&g, &r, &s);
    }
}

void run_pairs(const work *w) { run_sparse(w, 0); }
void run_rice(const work *w) { run_sparse(w, 1); }
#endif
