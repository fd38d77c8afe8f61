# What the scripts of this directory share; bash reads it, nothing runs it.
#
# Progress goes to standard error, results to standard output. Nothing is installed without being announced first, with
# its size; root's rights are used for system packages only, by sudo where the caller is not root.
# shellcheck shell=bash

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$CHECKOUT/.venv
LOG="" # where `working` keeps the output of a command

say() { printf '%s\n' "$*" >&2; }
step() { printf '\n==> %s\n' "$*" >&2; }
die() {
	printf '\n%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# What goes away with the script, however it ends: the command that `working` runs, and paths.
WORKER=""
LEFTOVERS=()
clean_up() {
	if [[ -n $WORKER ]]; then
		kill "$WORKER" 2>/dev/null || true
		wait "$WORKER" 2>/dev/null || true
	fi
	rm -rf "${LEFTOVERS[@]}"
}
trap clean_up EXIT

# working TEXT COMMAND...: run a command that prints much, showing that it lives; what it printed only if it fails.
working() {
	local text=$1 started=$SECONDS shown=0 status=0
	shift
	if [[ -z $LOG ]]; then
		LOG=$(mktemp)
		LEFTOVERS+=("$LOG")
	fi
	printf '    %s ' "$text" >&2
	"$@" >"$LOG" 2>&1 </dev/null &
	WORKER=$!
	# Every half second on a terminal, every ten in a log.
	while kill -0 "$WORKER" 2>/dev/null; do
		sleep 0.5
		shown=$((shown + 1))
		if [[ -t 2 ]]; then
			printf '\r    %s %d s ' "$text" $((SECONDS - started)) >&2
		elif ((shown % 20 == 0)); then
			printf '.' >&2
		fi
	done
	wait "$WORKER" || status=$?
	WORKER=""
	if ((status)); then
		printf 'failed\n' >&2
		tail -n 40 "$LOG" >&2
		return "$status"
	fi
	[[ -t 2 ]] && printf '\r    %s ' "$text" >&2
	printf 'done, %d s\n' $((SECONDS - started)) >&2
}

# --- system packages -------------------------------------------------------------------------------------------------

os_release() { # os_release KEY
	# shellcheck disable=SC1091
	(. /etc/os-release 2>/dev/null && printf '%s' "${!1:-}")
}

as_root() {
	if ((EUID == 0)); then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root, and there is no sudo here; as root, run: ${WISH:-$*}"
	fi
}

apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@"
}

# Whether apt can install every one of these with what it knows by now.
apt_knows() { apt-get -qq --simulate --no-install-recommends install "$@" >/dev/null 2>&1; }

# need PROGRAM=PACKAGE...: see that programs exist, and install the packages of those that do not.
# A PROGRAM with a slash is a file; "venv" is Python's venv module for $PYTHON.
need() {
	local wish packages=()
	for wish; do
		has "${wish%%=*}" || packages+=("${wish#*=}")
	done
	((${#packages[@]})) || return 0
	command -v apt-get >/dev/null ||
		die "missing here: ${packages[*]} (Debian's names); this machine has no apt-get, so install them by hand"
	step "System packages: ${packages[*]}"
	WISH="apt-get install --no-install-recommends ${packages[*]}" as_root true # a password is asked for here, not behind a progress line
	apt_knows "${packages[@]}" || working "asking the package servers what is new (apt-get update)" apt_get update
	apt_knows "${packages[@]}" || die "apt cannot install: ${packages[*]}; see: apt-get install --simulate ${packages[*]}"
	LC_ALL=C apt-get --assume-no --no-install-recommends install "${packages[@]}" 2>/dev/null |
		grep -E '^(Need to get|After this operation)' | sed 's/^/    /' >&2 || true
	working "installing" apt_get install --yes --no-install-recommends "${packages[@]}"
}

has() {
	case $1 in
		venv) "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ;;
		*/*) [[ -e $1 ]] ;;
		*) command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] ;;
	esac
}

# --- Python ----------------------------------------------------------------------------------------------------------

# Set PYTHON: the system's own if it is new enough, since that is what its python3-venv package belongs to.
find_python() {
	local candidate
	for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			PYTHON=$(command -v "$candidate")
			return
		fi
	done
	die "no Python 3.11 or newer here"
}

# make_venv EXTRAS SIZE: the virtual environment .venv of this checkout, holding pyrune (editable) with these extras.
make_venv() {
	local extras=$1 size=$2 stamp digest
	stamp=$VENV/.installed-${extras//,/-}
	digest=$(sha256sum "$CHECKOUT/pyproject.toml" | cut -d' ' -f1)
	if [[ -x $VENV/bin/python && $(cat "$stamp" 2>/dev/null) == "$digest" ]] && "$VENV/bin/python" -c 'import pyrune' 2>/dev/null; then
		return
	fi
	step "Python packages into .venv: pyrune[$extras], about $size"
	if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
		# A checkout that was moved or copied from another machine has one that does not run.
		working "making .venv with $PYTHON" "$PYTHON" -m venv --clear "$VENV"
	fi
	working "fetching and installing" "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check \
		--editable "${CHECKOUT}[$extras]"
	printf '%s\n' "$digest" >"$stamp"
}

# --- places ----------------------------------------------------------------------------------------------------------

# Where what was fetched or compiled is kept between runs, for pyrune itself too.
cache_directory() {
	if ((EUID == 0)); then
		printf '/var/cache/pyrune'
	else
		printf '%s/pyrune' "${XDG_CACHE_HOME:-$HOME/.cache}"
	fi
}

# architecture NAME: as the kernel names it, from a name that the kernel, Debian or Go has for it.
architecture() {
	case $1 in
		x86_64 | amd64) printf 'x86_64' ;;
		aarch64 | arm64) printf 'aarch64' ;;
		*) die "$1 is no architecture of Nitro Enclaves: x86_64 or aarch64" ;;
	esac
}
