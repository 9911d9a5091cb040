/* Talks to the kernel's log by a helper that congestion controls don't need. */
#include "../samples/cc.h"

static long (*trace_printk)(const char *format, u32 size, ...) = (void *)6;

SEC("struct_ops/printk_ssthresh")
int printk_ssthresh(u64 *ctx)
{
	char text[] = "hello";

	trace_printk(text, sizeof(text));
	return NO_SSTHRESH;
}

SEC("struct_ops/printk_avoid")
int printk_avoid(u64 *ctx) { return 0; }

SEC("struct_ops/printk_undo")
int printk_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops printk = {
	.name = "printk",
	.cong_avoid = (void *)printk_avoid,
	.ssthresh = (void *)printk_ssthresh,
	.undo_cwnd = (void *)printk_undo,
};
