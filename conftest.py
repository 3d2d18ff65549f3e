pytest_plugins = ['notebook_items']  # tools/notebook_items.py: notebooks as tests
