/* Asks the loader for an address in the kernel, which is nobody's business. */
#include "../samples/cc.h"

extern void init_task __attribute__((section(".ksyms")));

SEC("struct_ops/symbol_ssthresh")
int symbol_ssthresh(u64 *ctx) { return (u64)&init_task >> 12 & 15; }

SEC("struct_ops/symbol_avoid")
int symbol_avoid(u64 *ctx) { return 0; }

SEC("struct_ops/symbol_undo")
int symbol_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops symbol = {
	.name = "symbol",
	.cong_avoid = (void *)symbol_avoid,
	.ssthresh = (void *)symbol_ssthresh,
	.undo_cwnd = (void *)symbol_undo,
};
