/* A program of another type: it drops all packets of an interface. */
#include "../samples/cc.h"

SEC("xdp")
int xdp_drop(void *ctx) { return 1; }
