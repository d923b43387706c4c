"""The web console: pages in a browser over a workspace, and over a gateway that runs.

app      puts the application together and runs it        guard    who may come in: host, origin, session
page     the register of pages                            login    the door: sessions and the form
view     what a page is handed                            frame    header, menu, errors around each page
read/    workspace -> plain values, without NiceGUI       pages/   the pages, which only draw
parts    tables, figures, charts, dialogs                 words/   every sentence, in English and Chinese
"""
