// SPDX-License-Identifier: GPL-2.0-or-later
//
// The first and only process of a virtual machine: does to the machine's memory what it is told on the serial line, a
// word a line, and checks it to the last byte. It counts its answers, the first of which is "1 ready".
//
//     fill     filled     GUEST_MIB of memory, no page of one repeated word, none that packs well
//     zero     zeroed     half of the pages are zeros, half a repeated word of their own
//     check    checked    all is as it was last written
//     give     given      all but a sixteenth is freed
//     off      ok         checked once more; the machine turns itself off
//
// GUEST_MIB is from the kernel's command line. What is wrong is told by check.h, and ends the machine with a panic.
#include "check.h"

#include <fcntl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>

static char *area;
static size_t whole, held; // bytes, as mapped and as they are left
static uint64_t (*content)(uint64_t page, size_t i);

static uint64_t noise(uint64_t page, size_t i)
{
	return page_word(1, 4 * page, i);
}

static uint64_t one_word(uint64_t page, size_t i)
{
	(void)i;
	return page & 1 ? mix(page) : 0;
}

static void write_all(uint64_t (*wanted)(uint64_t, size_t))
{
	uint64_t *words = (uint64_t *)area;

	content = wanted;
	for (uint64_t page = 0; page < held / PAGE; page++)
		for (size_t i = 0; i < WORDS; i++)
			*words++ = wanted(page, i);
}

static void check_all(void)
{
	const uint64_t *words = (const uint64_t *)area;

	for (uint64_t page = 0; page < held / PAGE; page++)
		for (size_t i = 0; i < WORDS; i++, words++)
			if (*words != content(page, i))
				wrong_word(words, page, content(page, i), *words);
}

static void fill_all(void)
{
	if (held < whole) {
		REQUIRE(!held || !munmap(area, held));
		area = map(whole);
		held = whole;
	}
	write_all(noise);
}

static void zero_all(void)
{
	write_all(one_word);
}

static void give(void)
{
	size_t kept = whole / 16;

	REQUIRE(!munmap(area + kept, held - kept));
	held = kept;
}

// Drivers that Debian's kernel has as modules: /modules/0 and on, in the order in which they need each other.
static void load_modules(void)
{
	char name[32];
	int fd;

	for (int at = 0; snprintf(name, sizeof(name), "/modules/%d", at), (fd = open(name, O_RDONLY)) >= 0; at++) {
		REQUIRE(!syscall(SYS_finit_module, fd, "", 0));
		REQUIRE(!close(fd));
	}
}

// The serial line, without echo and without changes to the ends of lines.
static void open_line(void)
{
	struct termios line;
	int fd = open("/dev/ttyS0", O_RDWR);

	REQUIRE(fd >= 0 && !tcgetattr(fd, &line));
	cfmakeraw(&line);
	REQUIRE(!tcsetattr(fd, TCSANOW, &line));
	for (int to = 0; to < 3; to++)
		REQUIRE(dup2(fd, to) == to);
	setlinebuf(stdout);
}

static void answer(const char *word)
{
	static int answers;

	printf("%d %s\n", ++answers, word);
}

static void obey(const char *order)
{
	static const struct {
		const char *order, *answer;
		void (*act)(void);
	} known[] = {
	    {"fill\n", "filled", fill_all}, {"zero\n", "zeroed", zero_all}, {"check\n", "checked", check_all},
	    {"give\n", "given", give},	    {"off\n", "ok", check_all},
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(order, known[i].order)) {
			known[i].act();
			answer(known[i].answer);
		}
}

int main(void)
{
	char order[16];
	const char *mib = getenv("GUEST_MIB");

	open_line();
	REQUIRE(mib);
	whole = strtoul(mib, NULL, 10) * MIB;
	load_modules();
	answer("ready");
	while (fgets(order, sizeof(order), stdin) && strcmp(order, "off\n"))
		obey(order);
	obey("off\n");
	REQUIRE(!tcdrain(1) && !reboot(RB_POWER_OFF));
}
