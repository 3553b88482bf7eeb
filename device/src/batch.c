/* The encoder for many images at once, where there are 64-bit registers, vectors and memory to spare. Each value of the
 * activations becomes a vector with one lane an image; everything else lies and runs as it does for one image. So maps
 * of any size fill the vectors, and weights are decoded once for all. */
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && UINTPTR_MAX > UINT32_MAX
#define ENTROPI_IMAGES 32
#pragma GCC diagnostic ignored "-Wpsabi" /* no vector is passed between files */
#include "rows.h"
#include "windows.h"

#include "kernels.c"
#include "layers.c"
#include "network.c"
#include "scale.c"
#include "softmax.c"

/* A row of weights is a list in groups of GROUP, the magnitudes in each of which add up to at most GROUP_LIMIT, so that
 * 16 bits can sum their products. Where the next weight does not fit, the group is filled up with weights of 0. */
enum { GROUP = 4, GROUP_LIMIT = 255, TILE = 4 };

typedef struct {
    uint32_t at; /* from a window's corner to its input */
    int32_t value;
} weight;

typedef struct {
    weight *first, *end;
    const weight **taps; /* where those of each tap start, and their end */
    uint32_t room;       /* for magnitudes in the last group */
} row;

typedef struct {
    uint32_t channels, columns, count; /* inputs of a group; of the kernel's width and area */
    uint32_t plane, down, across;      /* between neighbouring channels, kernel rows and kernel columns */
} window;

static void fill_group(row *r, uint32_t at)
{
    while ((r->end - r->first) % GROUP)
        *r->end++ = (weight){at, 0};
}

static void add_weight(row *r, uint32_t at, int32_t value)
{
    const uint32_t magnitude = (uint32_t)(value < 0 ? -value : value);
    if (magnitude > r->room)
        fill_group(r, at);
    if ((r->end - r->first) % GROUP == 0)
        r->room = GROUP_LIMIT;
    *r->end++ = (weight){at, value};
    r->room -= magnitude;
}

static void end_row(row *r)
{
    if (r->end != r->first)
        fill_group(r, r->end[-1].at);
}

static void read_dense(row *r, const window *k, const int8_t *weights)
{
    r->end = r->first;
    for (uint32_t t = 0; t < k->count; t++) {
        uint32_t at = t / k->columns * k->down + t % k->columns * k->across;
        r->taps[t] = r->end;
        for (const int8_t *w = weights + t, *end = w + k->channels * k->count; w != end; w += k->count, at += k->plane)
            if (*w)
                add_weight(r, at, *w);
    }
    r->taps[k->count] = r->end;
    end_row(r);
}

/* Returns whether the row has entries. */
SPECIALISE int read_sparse(row *r, const window *k, entry_reader *entries, int is_rice)
{
    const uint32_t length = k->channels * k->count;
    entry_reader e = *entries;
    r->end = r->first;
    if (e.next >= length) {
        entries->next -= length;
        return 0;
    }
    for (uint32_t t = 0; t < k->count; t++) {
        const uint32_t from = t / k->columns * k->down + t % k->columns * k->across;
        r->taps[t] = r->end;
        for (; e.next < k->channels; read_entry(&e, is_rice))
            if (e.value)
                add_weight(r, from + e.next * k->plane, e.value);
        e.next -= k->channels;
    }
    *entries = e;
    r->taps[k->count] = r->end;
    end_row(r);
    return 1;
}

/* Sums of whole windows with these corners. */
SPECIALISE void sum_windows(const row *r, int32_t bias, const int8s *const *corners, uint32_t windows, int32s *sums)
{
    for (uint32_t i = 0; i < windows; i++)
        sums[i] = in_all(bias);
    for (const weight *w = r->first; w != r->end; w += GROUP)
        for (uint32_t i = 0; i < windows; i++) {
            int16s sum = {0};
            for (uint32_t j = 0; j < GROUP; j++)
                sum += __builtin_convertvector(corners[i][w[j].at], int16s) * (int16_t)w[j].value;
            sums[i] += __builtin_convertvector(sum, int32s);
        }
}

/* The sum of a window whose taps beyond the border count as the zero point. */
static int32s sum_inside(const row *r, const window *k, int32_t bias, const int8s *corner, span down, span across,
                         int32_t zero_point)
{
    int32s sum = in_all(bias);
    for (uint32_t t = 0; t < k->count; t++) {
        const uint32_t y = t / k->columns, x = t % k->columns;
        const int is_inside = y >= down.from && y < down.end && x >= across.from && x < across.end;
        for (const weight *w = r->taps[t]; w != r->taps[t + 1]; w++)
            sum += (is_inside ? widened(corner + w->at) : in_all(zero_point)) * w->value;
    }
    return sum;
}

static void put_windows(const row *r, const row_scale *scale, const range *outputs, const int8s *const *corners,
                        int8s *const *to, uint32_t windows)
{
    int32s sums[TILE];
    if (windows == TILE)
        sum_windows(r, scale->bias, corners, TILE, sums);
    else
        for (uint32_t i = 0; i < windows; i++)
            sum_windows(r, scale->bias, corners + i, 1, sums + i);
    for (uint32_t i = 0; i < windows; i++)
        put(scale, outputs, sums + i, 1, to[i]);
}

static void run_conv(const work *w)
{
    const layer *l = &w->layer;
    const tensor *in = &w->in, *out = &w->out;
    const uint32_t rows_a_group = out->channels / l->groups;
    const window k = {
        .channels = (uint32_t)in->channels / l->groups,
        .columns = l->kernel_w,
        .count = (uint32_t)l->kernel_h * l->kernel_w,
        .plane = in->plane,
        .down = l->dilation_h * in->pitch,
        .across = l->dilation_w,
    };
    const axis down = along(l->stride_h, l->dilation_h, l->kernel_h, l->pad_top, in->top, in->height, in->bottom,
                            out->height);
    const axis across = along(l->stride_w, l->dilation_w, l->kernel_w, l->pad_left, in->left, in->width, in->right,
                              out->width);
    const int is_dense = l->encoding == WEIGHTS_DENSE, is_rice = l->encoding == WEIGHTS_RICE;
    const range outputs = range_of(l, out);
    const uint8_t *weights = w->image + l->weights_at;
    row r = {.taps = (const weight **)(void *)w->scratch};
    r.first = (weight *)(void *)(r.taps + MAX_TAPS + 1);
    scale_reader scales = open_scales(w->image + l->parameters_at);
    entry_reader entries = {0};
    if (!is_dense) {
        entries = open_entries(weights, is_rice);
        read_entry(&entries, is_rice);
    }
    const int8s *input = w->activations + ((int32_t)interior(in) - (int32_t)(l->pad_top * in->pitch + l->pad_left));
    int8s *output = w->activations + interior(out);
    for (uint32_t c = 0; c < out->channels; c++, output += out->plane) {
        if (c && c % rows_a_group == 0)
            input += k.channels * k.plane;
        if (is_dense) {
            read_dense(&r, &k, (const int8_t *)weights + c * k.channels * k.count);
        } else if (!(is_rice ? read_sparse(&r, &k, &entries, 1) : read_sparse(&r, &k, &entries, 0))) {
            const int8_t value = (int8_t)*scales.at++;
            for (uint32_t y = 0; y < out->height; y++)
                for (uint32_t x = 0; x < out->width; x++)
                    narrow(in_all(value), output + y * out->pitch + x);
            continue;
        }
        const row_scale scale = read_scale(&scales);
        const int8s *corners[TILE];
        int8s *to[TILE];
        uint32_t windows = 0;
        for (uint32_t y = 0; y < out->height; y++)
            for (uint32_t x = 0; x < out->width; x++) {
                const int8s *corner = input + y * l->stride_h * in->pitch + x * l->stride_w;
                int8s *at = output + y * out->pitch + x;
                if (!are_inside(&down, y, 1) || !are_inside(&across, x, 1)) {
                    const int32s sum = sum_inside(&r, &k, scale.bias, corner, taps_inside(&down, y),
                                                  taps_inside(&across, x), in->zero_point);
                    put(&scale, &outputs, &sum, 1, at);
                    continue;
                }
                corners[windows] = corner, to[windows] = at;
                if (++windows == TILE) {
                    put_windows(&r, &scale, &outputs, corners, to, TILE);
                    windows = 0;
                }
            }
        put_windows(&r, &scale, &outputs, corners, to, windows);
    }
}

void run_dense(const work *w) { run_conv(w); }
void run_depthwise(const work *w) { run_conv(w); }
void run_pairs(const work *w) { run_conv(w); }
void run_rice(const work *w) { run_conv(w); }

/* Values of so many images into their lanes; those of the last image into the lanes that are left. */
static void copy_in(const tensor *t, const int8_t *inputs, uint32_t images, int8s *activations)
{
    const size_t length = (size_t)t->channels * t->height * t->width;
    fill_border(t, activations);
    for (uint32_t c = 0; c < t->channels; c++)
        for (uint32_t y = 0; y < t->height; y++) {
            int8_t *to = (int8_t *)(activations + interior(t) + c * t->plane + y * t->pitch);
            for (uint32_t x = 0; x < t->width; x++, inputs++)
                for (uint32_t i = 0; i < IMAGES; i++)
                    *to++ = inputs[(i < images ? i : images - 1u) * length];
        }
}

static void copy_out(const tensor *t, const int8s *activations, uint32_t images, int8_t *features)
{
    const size_t length = (size_t)t->channels * t->height * t->width;
    for (uint32_t c = 0; c < t->channels; c++)
        for (uint32_t y = 0; y < t->height; y++) {
            const int8_t *from = (const int8_t *)(activations + interior(t) + c * t->plane + y * t->pitch);
            for (uint32_t x = 0; x < t->width; x++, features++, from += IMAGES)
                for (uint32_t i = 0; i < images; i++)
                    features[i * length] = from[i];
        }
}

/* The arena: room to align it; the activations; the list of the longest row with every weight in a group of its own. */
static size_t list_bytes(const uint8_t *image, const image_header *h)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < h->layers; i++) {
        const layer l = read_layer(image, h, i);
        if (l.kind != LAYER_CONV)
            continue;
        const tensor in = read_tensor(image, h, l.input);
        const uint32_t length = (uint32_t)in.channels / l.groups * l.kernel_h * l.kernel_w;
        longest = length > longest ? length : longest;
    }
    return (MAX_TAPS + 1u) * sizeof(const weight *) + (size_t)longest * GROUP * sizeof(weight);
}

size_t entropi_batch_bytes(const entropi *self)
{
    if (!self || !self->image)
        return 0;
    const image_header h = read_header(self->image);
    return sizeof(int8s) - 1 + h.activation_bytes * sizeof(int8s) + list_bytes(self->image, &h);
}

entropi_status entropi_encode_batch(const entropi *self, const int8_t *inputs, size_t images, int8_t *features,
                                    void *arena, size_t arena_length)
{
    if (!self || !self->image || !arena || (images && (!inputs || !features)))
        return ENTROPI_E_ARGUMENT;
    if (arena_length < entropi_batch_bytes(self))
        return ENTROPI_E_ARENA;
    const uint8_t *image = self->image;
    const image_header h = read_header(image);
    const tensor in = read_tensor(image, &h, h.input), out = read_tensor(image, &h, h.output);
    const size_t input_length = (size_t)in.channels * in.height * in.width;
    work w = {.image = image};
    w.activations = (int8s *)(((uintptr_t)arena + sizeof(int8s) - 1) / sizeof(int8s) * sizeof(int8s));
    w.scratch = (uint32_t *)(void *)(w.activations + h.activation_bytes);
    for (uint32_t count; images; images -= count, inputs += count * input_length, features += count * h.features) {
        count = images < IMAGES ? (uint32_t)images : IMAGES;
        copy_in(&in, inputs, count, w.activations);
        for (uint32_t i = 0; i < h.layers; i++)
            run_layer(&h, i, &w);
        copy_out(&out, w.activations, count, features);
    }
    return ENTROPI_OK;
}
#endif
