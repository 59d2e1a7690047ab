"""A chat for `streamlit run` and for AppTest."""

from __future__ import annotations

import streamlit as st

from queuestream.ui import streamlit_stream
from tests.ui.apps.model import ObedientModel, tell

model = ObedientModel()
st.title("A chat")
st.button("Again")
question = st.text_input("Question")
tell("drawn")
if question:
    answer = streamlit_stream(model, question)
    with st.chat_message("ai"):
        said = st.write_stream(answer)
    tell(f"written {said}")
    st.caption(f"complete: {answer.text}")
