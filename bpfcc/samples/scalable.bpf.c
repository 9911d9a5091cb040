/*
 * scalable: as Reno, but it grows by one percent of what is acknowledged and
 * shrinks by an eighth (Tom Kelly, Scalable TCP, 2003): on fast long links it
 * comes back from a loss in some round trips instead of minutes. It only uses
 * what the kernel has had since Linux 6.4.
 */
#include "cc.h"

KFUNC u32 tcp_slow_start(struct tcp_sock *tp, u32 acked);
KFUNC void tcp_cong_avoid_ai(struct tcp_sock *tp, u32 w, u32 acked);
KFUNC u32 tcp_reno_undo_cwnd(struct sock *sk);

#define GROWTH 100

SEC("struct_ops/scalable_avoid")
int scalable_avoid(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];
	u32 acked = ctx[2], window = tp->snd_cwnd;

	if (window >= 2 * tp->max_packets_out) /* it isn't the window that limits */
		return 0;
	if (window < tp->snd_ssthresh) {
		acked = tcp_slow_start(tp, acked);
		if (!acked)
			return 0;
	}
	tcp_cong_avoid_ai(tp, window < GROWTH ? window : GROWTH, acked);
	return 0;
}

SEC("struct_ops/scalable_ssthresh")
int scalable_ssthresh(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];
	u32 window = tp->snd_cwnd - tp->snd_cwnd / 8;

	return window < 2 ? 2 : window;
}

SEC("struct_ops/scalable_undo")
int scalable_undo(u64 *ctx)
{
	return tcp_reno_undo_cwnd((void *)ctx[0]);
}

SEC(".struct_ops.link")
struct tcp_congestion_ops scalable = {
	.name = "scalable",
	.cong_avoid = (void *)scalable_avoid,
	.ssthresh = (void *)scalable_ssthresh,
	.undo_cwnd = (void *)scalable_undo,
};
