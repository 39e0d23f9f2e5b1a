// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a tree of processes really holds of memory, seen from outside.
//
//     sample_rss ROOT_PID INTERVAL_MS ENGINE
//
// Adds up, every INTERVAL_MS, the resident anonymous memory of ROOT_PID and of all that descends from it or is
// in its session, until standard input ends, and prints one JSON object with the peak. With ENGINE 1 the
// shared memory (memory files) of the root and of what it forked without exec counts as well: that is
// userswap's own.
//
// Nothing is counted twice. Processes that share their memory (a vfork child, the resident helper) are one;
// kcmp(2) tells. Pages shared copy-on-write after a fork are shared out by the kernel in Pss_Anon; since that
// costs a walk of the page tables, it is asked only where there was a fork without exec, and only when the
// cheap sum, which can only be too high, would be a new peak.
//
// Only files that never touch the memory of the process are read: /proc/PID/cmdline or environ would wait for
// a page fault that the engine under test must serve.
#include "check.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>

enum { MOST = 4096, FORKED_NO_EXEC = 0x40 };

struct process {
	pid_t pid, parent, session, family;
	unsigned long long started;
	unsigned flags;
	char state, name[32];
	int statm;
	bool ours, known, same_memory;
	size_t bytes;
	unsigned stamp;
};

static struct process table[MOST];
static size_t used, samples, at_peak_count;
static struct process at_peak[MOST];
static struct {
	pid_t pid;
	unsigned long long started;
} seen[1 << 16];
static size_t seen_count, peak, discarded;
static unsigned stamp;
static pid_t root;
static bool engine;

static bool read_file(pid_t pid, const char *name, char *text, size_t size)
{
	char path[64];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = read(fd, text, size - 1);
	close(fd);
	text[got > 0 ? got : 0] = 0;
	return got > 0;
}

// Fields 3 to 22 of stat, behind the name, which may hold anything.
static bool read_stat(struct process *p)
{
	char text[1024], *open_bracket, *close_bracket;
	int parent, session;

	if (!read_file(p->pid, "stat", text, sizeof(text)))
		return false;
	open_bracket = strchr(text, '(');
	close_bracket = strrchr(text, ')');
	if (!open_bracket || !close_bracket)
		return false;
	*close_bracket = 0;
	snprintf(p->name, sizeof(p->name), "%s", open_bracket + 1);
	if (sscanf(close_bracket + 2, "%c %d %*d %d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
		   &p->state, &parent, &session, &p->flags, &p->started) != 5)
		return false;
	p->parent = parent;
	p->session = session;
	return true;
}

static struct process *find(pid_t pid)
{
	for (size_t i = 0; i < used; i++)
		if (table[i].pid == pid)
			return &table[i];
	return NULL;
}

static void forget(struct process *p)
{
	if (p->statm >= 0)
		close(p->statm);
	*p = table[--used];
}

static void claim(struct process *p)
{
	struct process *parent = find(p->parent);
	char path[64];

	p->ours = true;
	p->family = p->flags & FORKED_NO_EXEC && parent && parent->ours ? parent->family : p->pid;
	snprintf(path, sizeof(path), "/proc/%d/statm", p->pid);
	p->statm = open(path, O_RDONLY | O_CLOEXEC);
	if (seen_count < sizeof(seen) / sizeof(seen[0])) {
		seen[seen_count].pid = p->pid;
		seen[seen_count++].started = p->started;
	}
}

static bool belongs(const struct process *p)
{
	const struct process *parent = find(p->parent);

	return p->pid == root || p->session == root || (parent && parent->ours);
}

static void meet(pid_t pid)
{
	struct process *p = find(pid);

	if (!p) {
		if (used == MOST)
			return;
		p = &table[used++];
		*p = (struct process){.pid = pid, .statm = -1};
	}
	p->stamp = stamp;
	if (!p->known) {
		p->known = read_stat(p);
		if (p->known && belongs(p))
			claim(p);
	}
}

static void list_processes(DIR *proc)
{
	struct dirent *entry;

	stamp++;
	rewinddir(proc);
	while ((entry = readdir(proc)))
		if (isdigit((unsigned char)entry->d_name[0]))
			meet((pid_t)atoi(entry->d_name));
	for (size_t i = used; i-- > 0;)
		if (table[i].stamp != stamp)
			forget(&table[i]);
}

// A number behind `name` in the text, in KiB, as bytes.
static size_t kilobytes(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoul(at + strlen(name), NULL, 10) * 1024 : 0;
}

static size_t shared_bytes(const struct process *p)
{
	char text[4096];

	return read_file(p->pid, "status", text, sizeof(text)) ? kilobytes(text, "RssShmem:") : 0;
}

static bool is_engine(const struct process *p)
{
	return engine && p->family == root;
}

static size_t resident(const struct process *p)
{
	unsigned long whole, shared;
	char text[256];
	ssize_t got = p->statm < 0 ? -1 : pread(p->statm, text, sizeof(text) - 1, 0);

	if (got <= 0)
		return 0;
	text[got] = 0;
	if (sscanf(text, "%*u %lu %lu", &whole, &shared) != 2 || whole < shared)
		return 0;
	return (whole - shared) * PAGE + (is_engine(p) ? shared_bytes(p) : 0);
}

static bool shares_memory(const struct process *p)
{
	if (!(p->flags & FORKED_NO_EXEC))
		return false;
	for (const struct process *q = table; q < table + used; q++)
		if (q != p && q->ours && !q->same_memory && q->state != 'Z' &&
		    !syscall(SYS_kcmp, p->pid, q->pid, KCMP_VM, 0, 0))
			return true;
	return false;
}

// The sum that is too high where pages are shared copy-on-write.
static size_t cheap_sum(void)
{
	size_t sum = 0;

	for (struct process *p = table; p < table + used; p++)
		p->same_memory = false;
	for (struct process *p = table; p < table + used; p++) {
		if (!p->ours || (p->flags & FORKED_NO_EXEC && !read_stat(p)))
			continue;
		if (!(p->flags & FORKED_NO_EXEC) && p->family != p->pid)
			p->family = p->pid; // it has called exec
		p->same_memory = shares_memory(p);
		p->bytes = p->same_memory ? 0 : resident(p);
		sum += p->bytes;
	}
	return sum;
}

static bool has_relatives(const struct process *p)
{
	for (const struct process *q = table; q < table + used; q++)
		if (q != p && q->ours && !q->same_memory && q->family == p->family && q->bytes)
			return true;
	return false;
}

static bool proportional(struct process *p)
{
	char text[4096];

	if (!read_file(p->pid, "smaps_rollup", text, sizeof(text)))
		return false;
	p->bytes = kilobytes(text, "Pss_Anon:") + (is_engine(p) ? kilobytes(text, "Pss_Shmem:") : 0);
	return true;
}

// False if a relative came, went or called exec in between: then the parts do not belong together.
static bool exact_sum(size_t *sum)
{
	*sum = 0;
	for (struct process *p = table; p < table + used; p++) {
		if (!p->ours || p->same_memory || !p->bytes)
			continue;
		if (has_relatives(p) && !proportional(p))
			return false;
		*sum += p->bytes;
	}
	for (const struct process *p = table; p < table + used; p++) {
		struct process again = *p;

		if (!p->ours || !p->bytes)
			continue;
		if (!read_stat(&again) || (again.flags ^ p->flags) & FORKED_NO_EXEC || again.state == 'Z')
			return false;
	}
	return true;
}

static void sample(DIR *proc)
{
	size_t sum;

	samples++;
	list_processes(proc);
	if (cheap_sum() <= peak)
		return;
	if (!exact_sum(&sum)) {
		discarded++;
		return;
	}
	if (sum <= peak)
		return;
	peak = sum;
	at_peak_count = 0;
	for (size_t i = 0; i < used; i++)
		if (table[i].ours && table[i].bytes)
			at_peak[at_peak_count++] = table[i];
}

static void report(double longest)
{
	printf("{\"samples\": %zu, \"discarded\": %zu, \"peak_bytes\": %zu, \"longest_gap\": %.4f, \"at_peak\": [", samples,
	       discarded, peak, longest);
	for (size_t i = 0; i < at_peak_count; i++) {
		for (char *c = at_peak[i].name; *c; c++)
			if (*c == '"' || *c == '\\' || !isprint((unsigned char)*c))
				*c = '?';
		printf("%s[%d, \"%s\", %zu]", i ? ", " : "", at_peak[i].pid, at_peak[i].name, at_peak[i].bytes);
	}
	printf("], \"seen\": [");
	for (size_t i = 0; i < seen_count; i++)
		printf("%s[%d, %llu]", i ? ", " : "", seen[i].pid, seen[i].started);
	printf("]}\n");
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	struct sched_param first = {.sched_priority = 1};
	struct pollfd input = {.fd = 0, .events = POLLIN};
	double interval, due, last, longest = 0;
	DIR *proc = opendir("/proc");

	REQUIRE(argc == 4 && proc);
	root = (pid_t)atoi(argv[1]);
	interval = atof(argv[2]) / 1000;
	engine = atoi(argv[3]);
	// It must keep up on a busy machine. Where that is not allowed, `longest_gap` tells.
	sched_setscheduler(0, SCHED_FIFO, &first);
	mlockall(MCL_CURRENT);
	puts("ready");
	fflush(stdout);
	last = due = now();
	for (;;) {
		double start = now(), left;

		longest = start - last > longest ? start - last : longest;
		last = start;
		sample(proc);
		due = due + interval > start ? due + interval : start + interval / 10;
		left = due - now();
		if (poll(&input, 1, left > 0 ? (int)(left * 1000 + 0.5) : 0) > 0)
			break;
	}
	report(longest);
	return 0;
}
