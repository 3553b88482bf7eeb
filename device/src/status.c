#include "entropi.h"

const char *entropi_status_name(entropi_status status)
{
    static const char *const names[] = {"OK",        "E_ARGUMENT", "E_IMAGE",   "E_VERSION", "E_ARENA", "E_NUMERIC",
                                        "E_STORE",   "E_EMPTY",    "E_DAMAGED", "E_FOREIGN", "E_KERNEL"};
    return status <= 0 && -status < (int)(sizeof names / sizeof *names) ? names[-status] : "E_UNKNOWN";
}
