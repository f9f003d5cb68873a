"""The chapters as tests, without progress bars.

pytest --nbval reads a cell's messages only after it ended, and the kernel's queue keeps about a thousand:
the bars of one training fill it, the cell's last message is lost, and the test fails on its timeout.
"""

import os

os.environ["TQDM_DISABLE"] = "1"
os.environ["DKDM_LIVE"] = "0"  # and without widgets, whatever started pytest
