"""A plain pyfuse3 filesystem: a directory shown through FUSE, written the way pyfuse3's users write it.

It is what stackfs is measured against, so it is meant to be as good as such a filesystem ordinarily is: each handler
makes the system call at once (os.pread, os.pwrite, os.lstat, ...) and returns; no threads, no locks, no logging, no
copy that can be saved. It defines no `flush`, `access` or extended attributes: the kernel then stops asking, which is
an advantage over stackfs, and left to it. Cache mode and time-outs are given, so that both sides get the same ones.

    python plain_pyfuse3.py [--direct-io] [--entry-timeout S] [--attr-timeout S] SOURCE MOUNTPOINT

Runs in the foreground until it is unmounted.
"""

import argparse
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)


class PlainFilesystem(pyfuse3.Operations):
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, source: str, direct_io: bool, entry_timeout: float, attr_timeout: float) -> None:
        super().__init__()
        root = os.fsencode(source)
        self.direct_io = direct_io
        self.entry_timeout = entry_timeout
        self.attr_timeout = attr_timeout
        self.device = os.lstat(root).st_dev
        self.paths: dict[int, list[bytes]] = {pyfuse3.ROOT_INODE: [root]}     # inode number -> paths, the newest last
        self.lookups: dict[int, int] = defaultdict(int)
        self.open_inodes: dict[int, int] = {}                                 # descriptor -> inode number
        self.open_descriptors: dict[int, list[int]] = defaultdict(list)       # and back
        self.directories: dict[int, tuple[int, list[bytes]]] = {}             # handle -> inode number, sorted names
        self.next_directory = 1

    # names

    def path(self, inode: int) -> bytes:
        try:
            return self.paths[inode][-1]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def child(self, parent: int, name: bytes) -> bytes:
        return self.path(parent) + b"/" + name

    def attributes(self, result: os.stat_result, inode: int | None = None) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(result.st_ino if inode is None else inode)
        entry.generation = 0
        entry.entry_timeout = self.entry_timeout
        entry.attr_timeout = self.attr_timeout
        entry.st_mode = ModeT(result.st_mode)
        entry.st_nlink = result.st_nlink
        entry.st_uid = result.st_uid
        entry.st_gid = result.st_gid
        entry.st_rdev = result.st_rdev
        entry.st_size = result.st_size
        entry.st_blksize = 4096
        entry.st_blocks = result.st_blocks
        entry.st_atime_ns = result.st_atime_ns
        entry.st_mtime_ns = result.st_mtime_ns
        entry.st_ctime_ns = result.st_ctime_ns
        return entry

    def known(self, path: bytes) -> EntryAttributes:
        """The attributes of a path, which the kernel knows from now on (one lookup more)."""
        try:
            result = os.lstat(path)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        if result.st_dev != self.device:
            raise FUSEError(errno.EXDEV)
        paths = self.paths.setdefault(result.st_ino, [])
        if path not in paths:
            paths.append(path)
        self.lookups[result.st_ino] += 1
        return self.attributes(result)

    def forget_path(self, inode: int, path: bytes) -> None:
        paths = self.paths.get(inode)
        if paths and path in paths and len(paths) > 1:
            paths.remove(path)

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        return self.known(self.child(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self.lookups[inode] -= count
            if self.lookups[inode] <= 0:
                del self.lookups[inode]
                if inode not in self.open_descriptors:
                    self.paths.pop(inode, None)

    # attributes

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        descriptors = self.open_descriptors.get(inode)
        try:
            result = os.fstat(descriptors[0]) if descriptors else os.lstat(self.path(inode))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return self.attributes(result, inode)

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        target: int | bytes = self.path(inode) if fh is None else fh
        follow = fh is not None
        try:
            if fields.update_size:
                os.truncate(target, attr.st_size)
            if fields.update_mode:
                os.chmod(target, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(target, uid, gid, follow_symlinks=follow)
            if fields.update_atime or fields.update_mtime:
                now = os.stat(target, follow_symlinks=follow)
                times = (
                    attr.st_atime_ns if fields.update_atime else now.st_atime_ns,
                    attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns,
                )
                os.utime(target, ns=times, follow_symlinks=follow)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return await self.getattr(inode, ctx)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        data = StatvfsData()
        result = os.statvfs(self.path(pyfuse3.ROOT_INODE))
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, name, getattr(result, name))
        data.f_namemax = result.f_namemax
        return data

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        try:
            return FileNameT(os.readlink(self.path(inode)))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    # making and removing

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        path = self.child(parent_inode, name)
        try:
            os.mkdir(path, mode & ~ctx.umask)
            os.chown(path, ctx.uid, ctx.gid)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return self.known(path)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        try:
            os.mknod(path, mode & ~ctx.umask, rdev)
            os.chown(path, ctx.uid, ctx.gid)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return self.known(path)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(parent_inode, name)
        try:
            os.symlink(target, path)
            os.lchown(path, ctx.uid, ctx.gid)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return self.known(path)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        path = self.child(new_parent_inode, new_name)
        try:
            os.link(self.path(inode), path, follow_symlinks=False)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        return self.known(path)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        path = self.child(parent_inode, name)
        try:
            inode = os.lstat(path).st_ino
            os.unlink(path)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        self.forget_path(inode, path)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        path = self.child(parent_inode, name)
        try:
            inode = os.lstat(path).st_ino
            os.rmdir(path)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        self.forget_path(inode, path)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,  # type: ignore[override, unused-ignore]   # str in the stubs of 3.4
        parent_inode_new: InodeT,
        name_new: FileNameT,  # type: ignore[override, unused-ignore]
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self.child(parent_inode_old, name_old), self.child(parent_inode_new, name_new)
        try:
            os.rename(old, new)
            inode = os.lstat(new).st_ino
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        for known, paths in self.paths.items():
            if known == inode or any(path.startswith(old + b"/") for path in paths):
                self.paths[known] = [new + p[len(old):] if p == old or p.startswith(old + b"/") else p for p in paths]

    # files

    def opened(self, descriptor: int, inode: int) -> FileInfo:
        self.open_inodes[descriptor] = inode
        self.open_descriptors[inode].append(descriptor)
        return FileInfo(fh=FileHandleT(descriptor), direct_io=self.direct_io)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        try:
            return self.opened(os.open(self.path(inode), flags & ~os.O_CREAT), inode)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        path = self.child(parent_inode, name)
        try:
            descriptor = os.open(path, flags | os.O_CREAT, mode & ~ctx.umask)
            if ctx.uid or ctx.gid:
                os.fchown(descriptor, ctx.uid, ctx.gid)
            result = os.fstat(descriptor)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        self.paths.setdefault(result.st_ino, []).append(path)
        self.lookups[result.st_ino] += 1
        return self.opened(descriptor, result.st_ino), self.attributes(result)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        try:
            return os.pread(fh, size, off)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        try:
            return os.pwrite(fh, buf, off)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        try:
            (os.fdatasync if datasync else os.fsync)(fh)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def release(self, fh: FileHandleT) -> None:
        inode = self.open_inodes.pop(fh)
        descriptors = self.open_descriptors[inode]
        descriptors.remove(fh)
        if not descriptors:
            del self.open_descriptors[inode]
            if inode not in self.lookups:
                self.paths.pop(inode, None)
        os.close(fh)

    # directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        try:
            names = sorted(os.listdir(self.path(inode)))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        handle = self.next_directory
        self.next_directory += 1
        self.directories[handle] = (inode, names)
        return FileHandleT(handle)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        inode, names = self.directories[fh]
        for index in range(start_id, len(names)):
            try:
                entry = self.known(self.child(inode, names[index]))
            except FUSEError:
                continue
            if not pyfuse3.readdir_reply(token, FileNameT(names[index]), entry, index + 1):
                await self.forget([(entry.st_ino, 1)])
                break

    async def releasedir(self, fh: FileHandleT) -> None:
        del self.directories[fh]


def main() -> None:
    parser = argparse.ArgumentParser("plain_pyfuse3.py", description="A plain pyfuse3 filesystem.")
    parser.add_argument("source", help="directory to show")
    parser.add_argument("mountpoint")
    parser.add_argument("--direct-io", action="store_true", help="every read(2) and write(2) reaches the handlers")
    parser.add_argument("--entry-timeout", type=float, default=0.0, metavar="S")
    parser.add_argument("--attr-timeout", type=float, default=0.0, metavar="S")
    arguments = parser.parse_args()
    os.umask(0)
    filesystem = PlainFilesystem(
        arguments.source, arguments.direct_io, arguments.entry_timeout, arguments.attr_timeout
    )
    pyfuse3.init(filesystem, arguments.mountpoint, {*pyfuse3.default_options, "fsname=plain_pyfuse3"})
    try:
        trio.run(pyfuse3.main)
    except BaseException:
        pyfuse3.close(unmount=True)
        raise
    pyfuse3.close()


if __name__ == "__main__":
    main()
