"""What a post callback may do to its operation besides changing IoStatus: send it down again, or take an open back."""

from stackfs.cext.callback_data import CallbackData

def reissue(data: CallbackData) -> bool:
    """data.reissue()"""

def cancel_open(data: CallbackData) -> bool:
    """data.cancel_open()"""
