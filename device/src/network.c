/* One layer of the network: its kernel, then the border of what it has put out. */
#include "internal.h"

static void fill(int8s *p, int8_t value, uint32_t count)
{
    while (count--)
        narrow(in_all(value), p++);
}

void fill_border(const tensor *t, int8s *activations)
{
    if (t->plane == (uint32_t)t->height * t->width)
        return;
    int8s *plane = activations + t->offset;
    for (uint32_t c = 0; c < t->channels; c++, plane += t->plane) {
        /* Right border of one row and left border of the next are neighbours. */
        const uint32_t gap = (uint32_t)t->right + t->left, first = t->top * t->pitch + t->left;
        fill(plane, t->zero_point, first);
        for (uint32_t y = 1; y < t->height; y++)
            fill(plane + first + y * t->pitch - gap, t->zero_point, gap);
        const uint32_t last = first + (t->height - 1u) * t->pitch + t->width;
        fill(plane + last, t->zero_point, t->plane - last);
    }
}

void run_layer(const uint8_t *image, const image_header *h, const layer *l, const tensor *out, int8s *activations,
               uint32_t *scratch)
{
    const tensor in = read_tensor(image, h, l->input);
    switch (l->kind) {
    case LAYER_CONV:
        run_conv(image, l, &in, out, activations, scratch);
        break;
    case LAYER_MAX_POOL:
    case LAYER_AVERAGE_POOL:
        run_pool(l, &in, out, activations);
        break;
    case LAYER_ADD:
    case LAYER_SUB: {
        const tensor second = read_tensor(image, h, l->second);
        run_add(image, l, &in, &second, out, activations);
        break;
    }
    case LAYER_MUL: {
        const tensor second = read_tensor(image, h, l->second);
        run_mul(image, l, &in, &second, out, activations);
        break;
    }
    case LAYER_TABLE:
        run_table(image, l, &in, out, activations);
        break;
    case LAYER_SOFTMAX:
        run_softmax(image, l, &in, out, activations);
        break;
    case LAYER_COPY:
        run_copy(l, &in, out, activations);
        break;
    default:
        run_mean(image, l, &in, out, activations);
    }
    fill_border(out, activations); /* last: an output may lie over an input of its layer, border over values */
}
