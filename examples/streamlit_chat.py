"""A chat page with Streamlit; a rerun, its stop button and a closed page stop the model.

`pip install "queuestream[streamlit]"`, then `streamlit run streamlit_chat.py`.
"""

import streamlit as st

from queuestream.demo import DemoChatModel
from queuestream.ui import streamlit_stream

st.title("What is a stream?")
messages = st.session_state.setdefault("messages", [])
for role, text in messages:
    st.chat_message(role).write(text)

if question := st.chat_input("Ask"):
    st.chat_message("human").write(question)
    messages.append(("human", question))
    answer = streamlit_stream(DemoChatModel(), messages)
    with st.chat_message("ai"):
        st.write_stream(answer)
    messages.append(("ai", answer.text))
