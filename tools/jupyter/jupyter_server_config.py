# JupyterLab as `make lab` starts it cleans notebooks when it saves them
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from clean import clean_model

c.ContentsManager.pre_save_hook = clean_model
