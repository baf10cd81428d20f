"""Device and network profiles: figures with their sources, and the code that reads them.

    devices/<board>.yaml   what a board computes, remembers and draws, per power mode
    networks/<id>.yaml     what a link carries, and how late
    figure.py              one number with its status and source
    device.py              DeviceProfile and the shape of a board's file
    network.py             NetworkProfile and the shape of a network's file
    reading.py             YAML text to a checked model, or one line saying which key is wrong
    library.py             look a profile up by id or by path: device(), network(), describe()
    price.py               what traced work costs on a device: measured, by roofline, by one scalar
    published/             times of training steps that somebody measured and published
    fit.py                 rates from published times, and the errors for networks left out
    trace.py, traces/      recorded rates of links and availability of devices, and readers of their formats

Ask `profiles.library`: `from profiles import library; library.device("jetson-nano-4g/10w")`. Its
functions are not repeated here because `profiles.device` and `profiles.network` are modules.
"""

from profiles.device import DeviceProfile
from profiles.figure import Figure, FigureRow
from profiles.network import NetworkProfile

__all__ = ["DeviceProfile", "Figure", "FigureRow", "NetworkProfile"]
