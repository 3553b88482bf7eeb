"""The device side: the C runtime (include/, src/), the same C in this process, the budget and the session interface."""

from entropi.device.budget import HeadPlan, plan_head
from entropi.device.bundle import Bundle, BundleError
from entropi.device.library import describe, measure
from entropi.device.runtime import HostDevice
from entropi.device.session import SMALLEST_HEAD, Device, DeviceError, HeadConfig, Need

__all__ = [
    "SMALLEST_HEAD",
    "Bundle",
    "BundleError",
    "Device",
    "DeviceError",
    "HeadConfig",
    "HeadPlan",
    "HostDevice",
    "Need",
    "describe",
    "measure",
    "plan_head",
]
