"""What is known of a volume beside its name: its filesystem, its id, its sectors (docs/semantics.md, B4.13). Plain
values."""

from __future__ import annotations

import enum
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stackfs.filter_objects import Volume

FILE_DEVICE_DISK_FILE_SYSTEM: Final = 0x8
FILE_READ_ONLY_DEVICE: Final = 0x2
FILE_DEVICE_IS_MOUNTED: Final = 0x20
FILE_VIRTUAL_VOLUME: Final = 0x40
SECTOR: Final = 512
"""What O_DIRECT asks for at least; where the disk's is larger, that."""


class FLT_FILESYSTEM_TYPE(enum.IntEnum):
    FLT_FSTYPE_UNKNOWN = 0
    FLT_FSTYPE_RAW = 1
    FLT_FSTYPE_NTFS = 2
    FLT_FSTYPE_FAT = 3
    FLT_FSTYPE_CDFS = 4
    FLT_FSTYPE_UDFS = 5
    FLT_FSTYPE_LANMAN = 6
    FLT_FSTYPE_WEBDAV = 7
    FLT_FSTYPE_RDPDR = 8
    FLT_FSTYPE_NFS = 9
    FLT_FSTYPE_MS_NETWARE = 10
    FLT_FSTYPE_NETWARE = 11
    FLT_FSTYPE_BSUDF = 12
    FLT_FSTYPE_MUP = 13
    FLT_FSTYPE_RSFX = 14
    FLT_FSTYPE_ROXIO_UDF1 = 15
    FLT_FSTYPE_ROXIO_UDF2 = 16
    FLT_FSTYPE_ROXIO_UDF3 = 17
    FLT_FSTYPE_TACIT = 18
    FLT_FSTYPE_FS_REC = 19
    FLT_FSTYPE_INCD = 20
    FLT_FSTYPE_INCD_FAT = 21
    FLT_FSTYPE_EXFAT = 22
    FLT_FSTYPE_PSFS = 23
    FLT_FSTYPE_GPFS = 24
    FLT_FSTYPE_NPFS = 25
    FLT_FSTYPE_MSFS = 26
    FLT_FSTYPE_CSVFS = 27
    FLT_FSTYPE_REFS = 28
    FLT_FSTYPE_OPENAFS = 29
    FLT_FSTYPE_CIMFS = 30


_T: Final = FLT_FILESYSTEM_TYPE
FILESYSTEMS: Final[dict[int, tuple[str, FLT_FILESYSTEM_TYPE]]] = {
    0xEF53: ("ext4", _T.FLT_FSTYPE_UNKNOWN),
    0x58465342: ("xfs", _T.FLT_FSTYPE_UNKNOWN),
    0x9123683E: ("btrfs", _T.FLT_FSTYPE_UNKNOWN),
    0xF2F52010: ("f2fs", _T.FLT_FSTYPE_UNKNOWN),
    0x2FC12FC1: ("zfs", _T.FLT_FSTYPE_UNKNOWN),
    0x01021994: ("tmpfs", _T.FLT_FSTYPE_UNKNOWN),
    0x794C7630: ("overlay", _T.FLT_FSTYPE_UNKNOWN),
    0x65735546: ("fuse", _T.FLT_FSTYPE_UNKNOWN),
    0x7366746E: ("ntfs3", _T.FLT_FSTYPE_NTFS),
    0x5346544E: ("ntfs", _T.FLT_FSTYPE_NTFS),
    0x4D44: ("vfat", _T.FLT_FSTYPE_FAT),
    0x2011BAB0: ("exfat", _T.FLT_FSTYPE_EXFAT),
    0x9660: ("iso9660", _T.FLT_FSTYPE_CDFS),
    0x15013346: ("udf", _T.FLT_FSTYPE_UDFS),
    0xFF534D42: ("cifs", _T.FLT_FSTYPE_LANMAN),
    0xFE534D42: ("smb3", _T.FLT_FSTYPE_LANMAN),
    0x517B: ("smbfs", _T.FLT_FSTYPE_LANMAN),
    0x6969: ("nfs", _T.FLT_FSTYPE_NFS),
    0x5346414F: ("afs", _T.FLT_FSTYPE_OPENAFS),
    0x47504653: ("gpfs", _T.FLT_FSTYPE_GPFS),
}
"""By the type that statfs(2) gives: the name that mount(8) uses, and the DDI's number for it, where it has one."""


@dataclass(frozen=True)
class FLT_VOLUME_PROPERTIES:
    """DeviceType, DeviceCharacteristics: of a disk with a file system on it. AlignmentRequirement: 0, any address.
    SectorSize: bytes, what non-cached transfers are multiples of. FileSystemDriverName: as mount(8) calls it.
    RealDeviceName: the backing directory."""

    DeviceType: int
    DeviceCharacteristics: int
    DeviceObjectFlags: int
    AlignmentRequirement: int
    SectorSize: int
    Flags: int
    FileSystemDriverName: str
    FileSystemDeviceName: str
    RealDeviceName: str

    FIXED = 64
    """Bytes of the C structure without its strings."""

    @property
    def size(self) -> int:
        names = (self.FileSystemDriverName, self.FileSystemDeviceName, self.RealDeviceName)
        return self.FIXED + sum(len(each.encode("utf-16-le", "surrogatepass")) for each in names)


def filesystem_name(volume: Volume) -> str:
    """The backing filesystem's name, as mount(8) uses it; "" of one that is not known here."""
    return FILESYSTEMS.get(volume.core.filesystem[0], ("", _T.FLT_FSTYPE_UNKNOWN))[0]


def filesystem_type(volume: Volume) -> int:
    """FLT_FSTYPE_*: the backing filesystem's; most of Linux' own have none."""
    return int(FILESYSTEMS.get(volume.core.filesystem[0], ("", _T.FLT_FSTYPE_UNKNOWN))[1])


def guid_name(volume: Volume) -> str:
    """"\\\\??\\\\Volume{...}": made of the backing filesystem's id and the backing directory's inode, so that the same
    directory has the same one at each mount."""
    number, identity, _read_only, inode = volume.core.filesystem
    name = f"stackfs {number:#x} {identity.hex()} {inode}"
    return f"\\??\\Volume{{{uuid.uuid5(uuid.NAMESPACE_URL, name)}}}"


def is_writable(volume: Volume) -> bool:
    """Neither the mount nor the backing filesystem is read-only."""
    return not volume.read_only and not volume.core.filesystem[2]


def sector_size(volume: Volume) -> int:
    """The logical block of the disk under the backing directory; SECTOR where it is none, or cannot be known."""
    try:
        device = os.stat(volume.source).st_dev
        where = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        if not os.path.exists(f"{where}/queue"):  # a partition
            where += "/.."
        with open(f"{where}/queue/logical_block_size", encoding="ascii") as file:
            return max(SECTOR, int(file.read()))
    except (OSError, ValueError):
        return SECTOR


def properties(volume: Volume) -> FLT_VOLUME_PROPERTIES:
    characteristics = FILE_VIRTUAL_VOLUME | (FILE_DEVICE_IS_MOUNTED if volume.mountpoint else 0)
    if not is_writable(volume):
        characteristics |= FILE_READ_ONLY_DEVICE
    return FLT_VOLUME_PROPERTIES(
        FILE_DEVICE_DISK_FILE_SYSTEM, characteristics, 0, 0, sector_size(volume), 0,
        filesystem_name(volume), volume.name, volume.source,
    )  # fmt: skip
