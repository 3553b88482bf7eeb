"""The emulated board: the real firmware on the real instruction set, with the board's true flash and RAM."""

from entropi.firmware_sim.boards import Board, BoardError, board, boards
from entropi.firmware_sim.emulator import FaultError
from entropi.firmware_sim.session import FramedDevice, Simulator

__all__ = ["Board", "BoardError", "FaultError", "FramedDevice", "Simulator", "board", "boards"]
