/* The kernels of a build: all of them or, in an exported folder, those that its encoder needs, so that the linker leaves
 * out the others. */
#include "internal.h"

kernel *const layer_kernels[KERNELS + 1] = {
    [KERNEL_OF(LAYER_CONV, WEIGHTS_DENSE)] = run_dense,
    [KERNEL_OF(LAYER_CONV, WEIGHTS_PAIRS)] = run_pairs,
    [KERNEL_OF(LAYER_CONV, WEIGHTS_RICE)] = run_rice,
    [KERNEL_OF(LAYER_MAX_POOL, 0)] = run_max_pool,
    [KERNEL_OF(LAYER_ADD, 0)] = run_add,
    [KERNEL_OF(LAYER_MEAN, 0)] = run_mean,
    [KERNEL_OF(LAYER_AVERAGE_POOL, 0)] = run_average_pool,
    [KERNEL_OF(LAYER_SUB, 0)] = run_sub,
    [KERNEL_OF(LAYER_MUL, 0)] = run_mul,
    [KERNEL_OF(LAYER_TABLE, 0)] = run_table,
    [KERNEL_OF(LAYER_COPY, 0)] = run_copy,
    [KERNEL_OF(LAYER_SOFTMAX, 0)] = run_softmax,
    [DEPTHWISE] = run_depthwise,
    [KERNELS] = NULL, /* so that no list is empty */
};
