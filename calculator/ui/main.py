"""What `vram app` hands to streamlit."""

from calculator.ui.page import main

main()
