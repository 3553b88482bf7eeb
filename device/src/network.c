/* One layer of the network: its kernel, then the border of what it has put out. */
#include "internal.h"
#include "vectors.h"

#if ENTROPI_MVE

static void fill(int8_t *p, int8_t value, uint32_t count)
{
    for (int32_t left = (int32_t)count; left > 0; left -= SIXTEEN, p += SIXTEEN)
        vstrbq_p_s8(p, vdupq_n_s8(value), vctp8q((uint32_t)left));
}

#else

static void fill(int8s *p, int8_t value, uint32_t count)
{
    int8s one;
    narrow(in_all(value), &one);
    for (; count >= 4; count -= 4, p += 4)
        p[0] = p[1] = p[2] = p[3] = one;
    if (count)
        p[0] = p[count / 2] = p[count - 1] = one;
}

#endif

/* What lies before the first value, between rows, between planes, and behind the last value. */
void fill_border(const tensor *t, int8s *activations)
{
    if (t->plane == (uint32_t)t->height * t->width)
        return;
    const uint32_t width = t->width, height = t->height, before = t->top * t->pitch + t->left, gap = t->pitch - width;
    const uint32_t behind = t->plane - before - (height - 1u) * t->pitch - width;
    const int8_t value = t->zero_point;
    int8s *p = activations + t->offset;
    fill(p, value, before);
    p += before;
    for (uint32_t c = t->channels; c; c--) {
        for (uint32_t y = height; --y; p += gap) {
            p += width;
            fill(p, value, gap);
        }
        p += width;
        const uint32_t last = c > 1 ? behind + before : behind;
        fill(p, value, last);
        p += last;
    }
}

void run_layer(const image_header *header, uint32_t index, work *w)
{
    w->layer = read_layer(w->image, header, index);
    w->in = read_tensor(w->image, header, w->layer.input);
    w->out = read_tensor(w->image, header, w->layer.output);
    if (has_two_operands(&w->layer))
        w->second = read_tensor(w->image, header, w->layer.second);
#if !defined(ENTROPI_IMAGES)
    w->scratch = (uint32_t *)(void *)(w->activations + w->layer.scratch_at);
#endif
    layer_kernels[kernel_of(&w->layer, &w->in)](w);
    fill_border(&w->out, w->activations); /* last: an output may lie over an input of its layer, border over values */
}
