/* Convolutions with sparse weights on a core with vectors of four int32. A row of weights is decoded once an image into
 * a list, and a tile of output positions keeps its sums in vector registers while it walks the list once: a load widens
 * four inputs, a multiply-accumulate takes them with the weight. Where the positions' inputs are no neighbours, the load
 * gathers them. The last tiles of a map are moved back into it: their outputs are written twice.
 *
 * Windows that reach beyond the border of the input are summed one by one; what lies there counts as the zero point. */
#include "mve.h"
#include "rows.h"
#include "windows.h"

#if ENTROPI_MVE

/* One of the kernel's positions. */
typedef struct {
    uint32_t behind; /* packed: from a window's corner to the tap's input behind the last channel */
    uint32_t start;  /* the number of the tap's first weight in the list */
} tap;

/* The list holds offset << 8 | value: how far a weight's input lies from the window's corner, and the int8 value. */
typedef struct {
    const uint32_t *first, *end;
    const tap *taps; /* and one behind the last */
    row_scale scale;
} row;

typedef struct {
    const int8_t *input; /* first value of the first window */
    int8_t *output;
    uint32_t stride_y, stride_x, pitch; /* strides in input bytes, pitch of the output */
    uint32_t count, columns;            /* of the kernel: taps, width */
    int32_t input_zero_point;
    range outputs;
    axis down, across;
    int clipped; /* some window reaches beyond the border */
} geometry;

static inline uint32_t offset_of(uint32_t w) { return w >> 8; }
static inline int32_t value_of(uint32_t w) { return (int8_t)w; }

/* Compute a tile of whole windows; the first one's corner is x, its output goes to `to`. */
typedef void run_tile(const geometry *g, const row *r, const int8_t *x, int8_t *to);

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
        return (shape){2, 2, gathered_2x2};
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

NOT_INLINED uint32_t *decode_pairs(entry_reader *e, const geometry *g, uint32_t channels, uint32_t plane, tap *taps,
                                   uint32_t *list)
{
    return decode_row(e, 0, g, channels, plane, taps, list);
}

NOT_INLINED uint32_t *decode_codes(entry_reader *e, const geometry *g, uint32_t channels, uint32_t plane, tap *taps,
                                   uint32_t *list)
{
    return decode_row(e, 1, g, channels, plane, taps, list);
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
    if (out->height == 1 && out->width == 1 && !g.clipped) {
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
        taps[i].behind = (corner + group_bytes) << 8;
    }
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
        run_row(&g, &r, &s);
    }
}

void run_pairs(const work *w) { run_sparse(w, 0); }
void run_rice(const work *w) { run_sparse(w, 1); }
#endif
