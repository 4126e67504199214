#!/bin/bash
# Run in namespaces of its own (mount, network, pid, uts, ipc, cgroup) by __main__.py: SOURCE VENV FOLDER.
# The root is this host's, with a writable layer in memory above it; nothing of the host is changed.
set -euo pipefail
source=$1 venv=$2 folder=$3
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder/layer"
mkdir "$folder/layer/upper" "$folder/layer/work" "$folder/layer/root"
root="$folder/layer/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/layer/upper,workdir=$folder/layer/work" "$root"
mkdir -p "$root/opt/mycelia/source" "$root/opt/mycelia/venv" "$root/opt/mycelia/out" "$root/opt/mycelia/bin"
tar -C "$source" -cf - --exclude=.git --exclude=.venv . | tar -C "$root/opt/mycelia/source" -xf -
mount --bind "$venv" "$root/opt/mycelia/venv"
mount --bind "$folder/out" "$root/opt/mycelia/out"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
# Of the host's services only those that the lab names.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/lib/systemd/system/*.wants
cat > "$root/opt/mycelia/bin/mycelia" <<'X'
#!/bin/sh
PYTHONPATH=/opt/mycelia/source exec /opt/mycelia/venv/bin/python -m mesh.cli "$@"
X
chmod 755 "$root/opt/mycelia/bin/mycelia"
mkdir -p "$root/etc/systemd/system.conf.d"
cat > "$root/etc/systemd/system.conf.d/lab.conf" <<'X'
[Manager]
DefaultEnvironment=PYTHONPATH=/opt/mycelia/source PATH=/opt/mycelia/bin:/usr/sbin:/usr/bin:/sbin:/bin
X
cat > "$root/etc/systemd/system/lab.service" <<'X'
[Service]
Type=oneshot
ExecStart=/opt/mycelia/venv/bin/python -m tests.systemd_lab.story
StandardOutput=append:/opt/mycelia/out/story
StandardError=append:/opt/mycelia/out/story
ExecStopPost=systemctl exit 0 --force
X
cat > "$root/etc/systemd/system/lab.target" <<'X'
[Unit]
Wants=dbus.service lab.service
AllowIsolate=yes
X
ln -sf lab.target "$root/etc/systemd/system/default.target"
cd "$root"
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
exec env -i container=lab /lib/systemd/systemd --system --log-level=info --log-target=console --show-status=no
