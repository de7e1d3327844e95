"""The earlier name of `hub_cards/cards/make_pictures.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout's hub_cards/ is not installed

from hub_cards.cards.make_pictures import main

sys.exit(main())
