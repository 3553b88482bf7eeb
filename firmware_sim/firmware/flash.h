/* The store in the last pages of the board's flash. */
#ifndef ENTROPI_FLASH_H
#define ENTROPI_FLASH_H

#include "entropi.h"

/* slot_bytes is 0 where image and code left no room. */
entropi_store flash_store(void);

#endif
