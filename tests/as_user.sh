#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Run as root: a command as an ordinary user, with no capability and no way to one, who may open /dev/userfaultfd: what
# `userswap doctor --fix` makes of a machine. In mounts of its own, so that the machine stays as it is. The interpreter
# is made reachable there if it lies in somebody's home.
set -eu
if [ "${1-}" != --inside ]; then
	exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
node=$(mktemp -d)
mount -t tmpfs -o mode=755 none "$node"
mknod -m 666 "$node/userfaultfd" c "$((0x$(stat -c %t /dev/userfaultfd)))" "$((0x$(stat -c %T /dev/userfaultfd)))"
mount --bind "$node/userfaultfd" /dev/userfaultfd
interpreter=$(readlink -f "$(command -v "$1")")
if ! setpriv --reuid 65534 --regid 65534 --clear-groups test -x "$interpreter"; then
	home=/$(echo "$interpreter" | cut -d / -f 2)
	below=$home/$(echo "$interpreter" | cut -d / -f 3)
	mkdir -p "$node$below"
	mount --rbind "$below" "$node$below"
	mount --rbind "$node$home" "$home"
fi
umount -l "$node" 2>/dev/null || true
rmdir "$node" 2>/dev/null || true
export HOME=/nonexistent
exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
