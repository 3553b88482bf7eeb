/* How the values of the tensors of a layer with two operands lie beside each other. */
#ifndef ENTROPI_LINES_H
#define ENTROPI_LINES_H

#include "internal.h"
#include "vectors.h"

/* So many lines of one length in so many planes. Rows of one pitch are one line; what is made of the borders between
 * them goes into the output's, which is written anew. */
typedef struct {
    uint32_t planes, lines, length;
} layout;

static inline layout plan_lines(const tensor *a, const tensor *b, const tensor *out)
{
    const uint32_t channels = out->channels, height = out->height, width = out->width;
    if (b->height != height || b->width != width || a->pitch != out->pitch || b->pitch != out->pitch)
        return (layout){channels, height, width};
    const uint32_t values = height * width, length = (height - 1u) * out->pitch + width;
    if (b->channels == channels && a->plane == values && b->plane == values && out->plane == values)
        return (layout){1, 1, channels * values};
    if (ENTROPI_MVE && b->channels == channels && a->plane == out->plane && b->plane == out->plane)
        return (layout){1, 1, (channels - 1u) * out->plane + length}; /* vectors are faster over borders than around */
    return (layout){channels, 1, length};
}

#endif
