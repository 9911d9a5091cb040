/*
 * bandwidth: a window of one and a half bandwidth-delay products, whatever is
 * lost. The bandwidth is the best of the last rounds, the delay the shortest
 * round trip; every few seconds the window is halved for a moment, so that the
 * delay of an empty queue is seen again. For links that lose packets for other
 * reasons than congestion. Needs Linux 6.10, since cong_control has four
 * arguments.
 */
#include "cc.h"

#define SCALE 24          /* bandwidth: segments per microsecond << SCALE */
#define MIN_WINDOW 10
#define DRAIN_EVERY 4000000 /* microseconds */

struct model {
	u64 best, last;   /* bandwidth of this span of rounds, and of the one before */
	u64 span;         /* when this span began */
	u64 drained;      /* when the window was last halved */
	u32 min_rtt;      /* microseconds; 0: not known */
	u32 drain_rtt;    /* the shortest while it was halved */
};

static inline struct model *model_of(struct tcp_sock *tp)
{
	return (struct model *)((struct inet_connection_sock *)tp)->icsk_ca_priv;
}

SEC("struct_ops/bandwidth_init")
int bandwidth_init(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];
	struct sock *sk = (void *)ctx[0];
	struct model *m = model_of(tp);

	m->best = m->last = 0;
	m->span = m->drained = tp->tcp_mstamp;
	m->min_rtt = m->drain_rtt = 0;
	tp->snd_ssthresh = NO_SSTHRESH;
	/* Until something is known: what another control has left may be wrong. */
	sk->sk_pacing_rate = sk->sk_max_pacing_rate;
	sk->sk_pacing_status = PACING_NEEDED;
	return 0;
}

static inline void learn(struct model *m, u64 now, u64 bandwidth, bool app_limited)
{
	if (m->min_rtt && now - m->span > 8 * (u64)m->min_rtt) {
		m->last = m->best;
		m->best = 0;
		m->span = now;
	}
	if (bandwidth > m->best && (!app_limited || bandwidth > m->last))
		m->best = bandwidth;
}

/* draining says whether the window is halved now, which takes two round trips. */
static inline bool draining(struct model *m, u64 now, u32 rtt)
{
	u64 since = now - m->drained;

	if (since < DRAIN_EVERY)
		return 0;
	if (!m->drain_rtt || rtt < m->drain_rtt)
		m->drain_rtt = rtt;
	if (since < DRAIN_EVERY + 2 * (u64)m->drain_rtt)
		return 1;
	m->min_rtt = m->drain_rtt;
	m->drain_rtt = 0;
	m->drained = now;
	return 0;
}

SEC("struct_ops/bandwidth_control")
int bandwidth_control(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];
	struct sock *sk = (void *)ctx[0];
	const struct rate_sample *rs = (void *)ctx[3];
	struct model *m = model_of(tp);
	u64 now = tp->tcp_mstamp, bandwidth, product, window, pacing;

	if (rs->delivered <= 0 || rs->interval_us <= 0 || rs->rtt_us <= 0)
		return 0;
	bandwidth = ((u64)rs->delivered << SCALE) / (u64)rs->interval_us;
	learn(m, now, bandwidth, rs->is_app_limited);
	if (!m->min_rtt || (u64)rs->rtt_us < m->min_rtt)
		m->min_rtt = rs->rtt_us;

	bandwidth = m->best > m->last ? m->best : m->last;
	product = bandwidth * m->min_rtt >> SCALE;
	window = draining(m, now, rs->rtt_us) ? product / 2 : product + product / 2;
	if (window < MIN_WINDOW)
		window = MIN_WINDOW;
	tp->snd_cwnd = window < 65536 ? window : 65535;

	pacing = 2 * (bandwidth * tp->mss_cache * 1000000 >> SCALE);
	sk->sk_pacing_rate = pacing < sk->sk_max_pacing_rate ? pacing : sk->sk_max_pacing_rate;
	return 0;
}

SEC("struct_ops/bandwidth_ssthresh")
int bandwidth_ssthresh(u64 *ctx)
{
	return NO_SSTHRESH;
}

SEC("struct_ops/bandwidth_undo")
int bandwidth_undo(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];

	return tp->snd_cwnd;
}

SEC(".struct_ops.link")
struct tcp_congestion_ops bandwidth = {
	.name = "bandwidth",
	.init = (void *)bandwidth_init,
	.cong_control = (void *)bandwidth_control,
	.ssthresh = (void *)bandwidth_ssthresh,
	.undo_cwnd = (void *)bandwidth_undo,
};
