/* Takes the verifier as many steps as it takes, and more. */
#include "../samples/cc.h"

SEC("struct_ops/endless_avoid")
int endless_avoid(u64 *ctx)
{
	volatile u32 n = 0;

	for (u32 i = 0; i < 1 << 20; i++)
		n += i;
	return n;
}

SEC("struct_ops/endless_ssthresh")
int endless_ssthresh(u64 *ctx) { return 2; }

SEC("struct_ops/endless_undo")
int endless_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops endless = {
	.name = "endless",
	.cong_avoid = (void *)endless_avoid,
	.ssthresh = (void *)endless_ssthresh,
	.undo_cwnd = (void *)endless_undo,
};
